"Referring image segmentation by semantics-aware dynamic localization and refinement (SADLR, AAAI 2023)"

__version__ = "0.1.0"

from importlib import import_module

_ROOMS = dict( # name -> the module that has it; it is imported when the name is asked for
    bundled='models.build', create_model='models.build', ReferSegmenter='models.build', Refer='data.refer',
    make_shapes='data.shapes', refer_dataloaders='data.block', refer_learner='learner', Training='training',
    train='training', evaluate='evaluation', score='metrics')
__all__ = list(_ROOMS)

def __getattr__(name):
    if name not in _ROOMS: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    try: room = import_module(f'{__name__}.{_ROOMS[name]}')
    except ModuleNotFoundError as error:
        error.msg = f'{error.name} is not installed: pip install "sadlr[torch]"'
        raise
    globals()[name] = found = getattr(room, name)
    return found

def __dir__(): return sorted({*globals(), *__all__})
