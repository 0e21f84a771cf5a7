"Phrases of rendered shapes: the same from release to release and in every process, balanced in every scene"
import json, os, subprocess, sys, zlib
from collections import Counter

import numpy as np
import pytest

from sadlr.data.expressions import SceneObject, make_refs
from sadlr.data.scenes import draw_scene
from sadlr.data.shapes import make_shapes

# Trained models and stored results rest on these phrases
CHECKSUMS = dict(attributes=2216069504, relations=2202444159, any=2496683232)

def checksum(level):
    looks = [('star', 'red', 'small', 10, 10), ('star', 'red', 'small', 50, 12), ('star', 'red', 'large', 30, 40),
             ('circle', 'blue', 'large', 12, 50), ('circle', 'red', 'small', 22, 25)]
    objects = [SceneObject(*look) for look in looks]
    refs = [texts for seed in range(20) for _, texts in make_refs(np.random.default_rng(seed), objects, level, 4)]
    return zlib.crc32(json.dumps(refs).encode())

@pytest.mark.parametrize('level', CHECKSUMS)
def test_phrases_stay(level): assert checksum(level) == CHECKSUMS[level]

def test_scenes_stay():
    "What stands in the first scenes of two seeds, and how one of them looks, to a few pixels"
    looks = [draw_scene(seed, i, 32).looks for seed in (0, 50) for i in range(6)]
    assert zlib.crc32(json.dumps(looks).encode()) == 1498770735
    scene = draw_scene(0, 5)
    np.testing.assert_allclose(scene.masks.sum((1, 2)), [86, 173, 96, 219, 90, 234, 101], atol=2)
    np.testing.assert_allclose(scene.image.mean((0, 1)), [81.18, 77.53, 95.76], atol=.1)

def test_phrases_do_not_rest_on_the_order_of_a_set():
    "Words are hashed with another seed in each process"
    code = 'from test_shapes import checksum; print(checksum("any"))'
    for seed in '1', '2':
        env = os.environ | dict(PYTHONHASHSEED=seed, PYTHONPATH=os.pathsep.join(filter(None, [os.path.dirname(__file__), *sys.path])))
        printed = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True).stdout
        assert int(printed) == CHECKSUMS['any']

def test_none_one_and_several_in_every_scene(tmp_path):
    "Also where few objects stand together"
    refer = make_shapes(tmp_path, n_images=200, img_size=32, seed=7, level='any')
    counts = Counter((ref.image_id, min(len(ref.ann_ids), 2)) for ref in refer.refs())
    for i in range(200): assert counts[i, 0] == counts[i, 1] == counts[i, 2] > 0, i

@pytest.mark.parametrize('before, after', [('any', 'relations'), ('relations', 'any')])
def test_levels_leave_each_other_alone(tmp_path, before, after):
    "Whichever comes first, all have the same scenes, and a level's own phrases"
    def contents(folder): return {p.name: p.read_bytes() for p in sorted((folder/'shapes').rglob('*.*'))}
    make_shapes(tmp_path/'one', n_images=10, level=after)
    make_shapes(tmp_path/'two', n_images=10, level=before)
    make_shapes(tmp_path/'two', n_images=10, level=after)
    assert {name: data for name, data in contents(tmp_path/'two').items() if name != f'refs({before}).p'} == contents(tmp_path/'one')
