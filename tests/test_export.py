"`learn.export` pickles the loaders without their data; what comes back prepares a new image and phrase the same way"
import pickle
import torch
from sadlr.data.block import refer_dataloaders, refer_samples
from sadlr.data.shapes import make_shapes

def test_loaders_survive_pickling(tmp_path):
    refer = make_shapes(tmp_path, n_images=20)
    dls = refer_dataloaders(refer, bs=4, num_workers=0, device='cpu')
    pickled = pickle.dumps(dls.new_empty())
    assert str(tmp_path).encode() not in pickled and len(pickled) < 20_000
    loaded = pickle.loads(pickled)
    image, phrase, _ = refer_samples(refer, 'test')[0]
    for a, b in zip(dls.test_dl([(image, phrase)]).one_batch(), loaded.test_dl([(image, phrase)]).one_batch()):
        torch.testing.assert_close(a, b)
