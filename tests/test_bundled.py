"The models that ship do what 76_experiments.bundled and 77_experiments.any say of them, on scenes that nobody has seen"
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from sadlr.data.block import refer_samples
from sadlr.data.scenes import COLOURS, draw_scene
from sadlr.data.shapes import make_shapes
from sadlr.evaluation import evaluate, predict_existence, shuffle_phrases
from sadlr.models.build import BUNDLED, bundled
from sadlr.phrases import landmarks, note_absent
from sadlr.profile import count_macs

@pytest.fixture(scope='module')
def general(): return bundled('any')

@pytest.fixture(scope='module')
def samples(tmp_path_factory):
    "By level"
    root = tmp_path_factory.mktemp('scenes')
    def of(level): return refer_samples(make_shapes(root, n_images=10, seed=12345, level=level), 'train')
    return {level: of(level) for level in ('relations', 'any')}

@pytest.mark.parametrize('name,least', [('shapes', 85), ('any', 81)])
def test_finds_and_reads(name, least, samples):
    def last_oIoU(samples): return evaluate(bundled(name), samples, progress=False)[-1]['oIoU']
    relations = samples['relations']
    assert last_oIoU(relations) > least and last_oIoU(shuffle_phrases(relations)) < 40

def test_denies_and_marks_several(general, samples):
    scores = evaluate(general, samples['any'], progress=False, protocol='gres')[-1]
    assert scores['N-acc'] > 88 and scores['T-acc'] > 95 and scores['gIoU'] > 81
    several = next(s for s in samples['any'] if s.phrase.startswith('all ') and s.rle)
    assert not note_absent(general.segment(several.image, several.phrase))

def test_each_photo_gets_its_own_answers(general, samples):
    "In batches of many photos, in which some phrases name a landmark"
    some = samples['any'][::len(samples['any'])//40]
    assert 5 < sum(bool(landmarks(s.phrase, general.landmark_after)) for s in some) < len(some) - 5
    exists, _ = predict_existence(general, some, bs=16)
    np.testing.assert_allclose(exists, [general.segment(s.image, s.phrase).exists for s in some], atol=1e-4)

def test_punctuation_changes_nothing(general):
    image = Image.fromarray(draw_scene(12345, 0).image)
    plain, marked = general.segment(image, ['the red star', '"The red, star."'])
    np.testing.assert_allclose(plain.scores, marked.scores, atol=1e-4)

def test_asks_for_the_landmark(general):
    "A colour that the scene does not have, as the place of something that it has"
    denied = {True: 0, False: 0}
    for scene in (draw_scene(12345, i) for i in range(20)):
        missing = next(colour for colour in COLOURS if colour not in {look[1] for look in scene.looks})
        phrase = f'the {scene.looks[0][0]} left of the large {missing} object'
        for asked in denied:
            with patch.dict(general.config, {} if asked else dict(landmark_after=[])):
                denied[asked] += bool(note_absent(general.segment(Image.fromarray(scene.image), phrase)))
    assert denied[True] >= 18 > denied[False]

def test_denies_what_it_cannot_read(general):
    "A word that no training had, in place of the shape, whatever colour is in the scene"
    scenes = [draw_scene(12345, i) for i in range(20)]
    asked = [(Image.fromarray(scene.image), f'the {scene.looks[0][1]}') for scene in scenes]
    def denied(noun): return sum(bool(note_absent(general.segment(image, f'{words} {noun}'))) for image, words in asked)
    assert denied('dog') >= 15 > 5 >= denied('object')

@pytest.mark.parametrize('name', BUNDLED)
@pytest.mark.parametrize('size', [64, 480])
def test_answers_at_its_own_size(name, size):
    "One pass at the size that it was trained at, whatever that of the picture: what an answer takes, counted"
    seen, model = [], bundled(name)
    side = model.config['img_size']
    model.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    model.segment(Image.fromarray(draw_scene(3, 0, size).image), 'the leftmost object')
    assert seen == [(1, 3, side, side)] and count_macs(model, side) < 1e9

def test_unknown_name():
    with pytest.raises(ValueError, match='choose one of'): bundled('refcoco')
    assert all(not bundled(name).training for name in BUNDLED)
