"The model that ships does what 76_experiments.bundled says of it, on scenes that nobody has seen"
import pytest
from PIL import Image

from sadlr.data.block import refer_samples
from sadlr.data.shapes import draw_scene, make_shapes
from sadlr.evaluation import evaluate, shuffle_phrases
from sadlr.models.build import BUNDLED, bundled
from sadlr.profile import count_macs

@pytest.fixture(scope='module')
def model(): return bundled('shapes')

@pytest.fixture(scope='module')
def samples(tmp_path_factory):
    refer = make_shapes(tmp_path_factory.mktemp('scenes'), n_images=10, seed=12345, level='relations')
    return refer_samples(refer, 'train')

def test_finds_and_reads(model, samples):
    def last_oIoU(samples): return evaluate(model, samples, progress=False)[-1]['oIoU']
    assert last_oIoU(samples) > 79 and last_oIoU(shuffle_phrases(samples)) < 40

@pytest.mark.parametrize('size', [64, 480])
def test_answers_at_its_own_size(model, size):
    "One pass at the size that it was trained at, whatever that of the picture: what an answer takes, counted"
    seen, side = [], model.config['img_size']
    hook = model.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    try: model.segment(Image.fromarray(draw_scene(3, 0, size).image), 'the leftmost object')
    finally: hook.remove()
    assert seen == [(1, 3, side, side)] and count_macs(model, side) < 1e9

def test_unknown_name():
    with pytest.raises(ValueError, match='choose one of'): bundled('refcoco')
    assert all(not bundled(name).training for name in BUNDLED)
