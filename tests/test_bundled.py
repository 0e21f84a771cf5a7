"The model that ships does what 70_experiments.bundled says of it, on scenes that nobody has seen"
import statistics
from time import process_time

import pytest
import torch
from PIL import Image

from sadlr.data.block import refer_samples
from sadlr.data.shapes import draw_scene, make_shapes
from sadlr.evaluate import evaluate, shuffle_phrases
from sadlr.models.build import BUNDLED, bundled

@pytest.fixture(scope='module')
def model(): return bundled('shapes')

@pytest.fixture(scope='module')
def samples(tmp_path_factory):
    refer = make_shapes(tmp_path_factory.mktemp('scenes'), n_images=50, seed=12345, level='relations')
    return refer_samples(refer, 'train')

def test_finds_and_reads(model, samples):
    def last_oIoU(samples): return evaluate(model, samples, progress=False)[-1]['oIoU']
    assert last_oIoU(samples) > 79 and last_oIoU(shuffle_phrases(samples)) < 40

@pytest.mark.parametrize('size', [64, 480])
def test_answers_in_time(model, size):
    image, threads = Image.fromarray(draw_scene(3, 0, size).image), torch.get_num_threads()
    def seconds():
        start = process_time()
        model.segment(image, 'the leftmost object')
        return process_time() - start
    torch.set_num_threads(1)
    try: assert statistics.median([seconds() for _ in range(6)][1:]) < .3
    finally: torch.set_num_threads(threads)

def test_unknown_name():
    with pytest.raises(ValueError, match='choose one of'): bundled('refcoco')
    assert all(not bundled(name).training for name in BUNDLED)
