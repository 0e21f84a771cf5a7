"What we rest on in other libraries beyond their documents: a release that changes it fails here by name"
from copy import deepcopy
from inspect import signature
import pytest, torch
from fastai.callback.core import Callback, CancelEpochException
from fastai.callback.fp16 import AMPMode, MixedPrecision
from fastai.callback.schedule import ParamScheduler
from fastai.distributed import DistributedTrainer
from fastai.test_utils import synth_learner
from fastprogress.fastprogress import MasterBar, ProgressBar
from timm.models.swin_transformer import SwinTransformerBlock
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from sadlr.models.build import create_model
from sadlr.models.swin import SwinBlock
from sadlr.muon import Muon
from sadlr.profile import inference_memory, training_memory

def export(encoder, *inputs): torch.export.export(encoder, inputs)

def load(encoder, *inputs):
    "Other weights, and a pass before them"
    with torch.no_grad():
        before = encoder(*inputs)
        state = encoder.state_dict().items()
        encoder.load_state_dict({name: t*.5 if t.is_floating_point() else t for name, t in state})
        assert not torch.equal(encoder(*inputs), before)
    vars(encoder)['expected'] = deepcopy(encoder).train().eval()(*inputs) # timm forgets by `train`

def infer(encoder, *inputs):
    with torch.inference_mode(): encoder(*inputs)

def fake(encoder, *inputs):
    with FakeTensorMode(allow_non_fake_inputs=True): encoder(*inputs)

@pytest.mark.parametrize('world', [export, infer, fake, load])
def test_no_tensor_outlives_its_world_in_timms_own_caches(world):
    "LeViT, EfficientFormer and TinyViT keep the biases of their attention by device"
    options = dict(backbone='levit_128s', fusion_heads=1)
    model = create_model('timm', 'classifier', 'nano', 64, language='gru', encoder_options=options).encoder.eval()
    inputs = torch.randn(1, 3, 64, 64), torch.randn(1, 6, 64), torch.ones(1, 6, dtype=torch.bool)
    world(model, *inputs)
    y = model(*inputs)
    y.square().mean().backward()
    assert type(y) is torch.Tensor and torch.equal(y, vars(model).get('expected', y))
    assert all(p.grad is not None for name, p in model.named_parameters() if 'attention_biases' in name)

def test_a_whole_model_is_exported():
    "Its copy gives the same scores, and it goes on to learn"
    options = dict(encoder_options=dict(depths=(2, 1, 1)), language_options=dict(vocab_size=9))
    model = create_model(size='nano', img_size=64, **options).eval()
    inputs = torch.randn(2, 3, 64, 64), torch.tensor([[2, 7, 3, 0], [2, 5, 0, 0]])
    exported = torch.export.export(model, inputs, strict=False).module() # the default since 2.7
    scores = model(*inputs)
    torch.testing.assert_close(exported(*inputs), scores)
    scores.square().mean().backward()
    assert all(p.grad is not None for name, p in model.encoder.named_parameters())

@pytest.mark.parametrize('encoder, world, side', [ # a size of its own each, so that nothing has been made for it before
    ('lavt', infer, 72), ('lavt', fake, 80), ('vlt', fake, 96), ('lts', export, 104), ('timm', fake, 56)])
def test_no_tensor_outlives_the_world_it_was_made_in(encoder, world, side):
    "After a trace, a pass of inference or one of fakes, the encoder answers and learns"
    options = dict(backbone='swin_tiny_patch4_window7_224') if encoder == 'timm' else dict(depths=(2, 1, 1))
    model = create_model(encoder, 'classifier', 'nano', side, language='gru', encoder_options=options).encoder.eval()
    inputs = torch.randn(2, 3, side, side), torch.randn(2, 6, 64), torch.ones(2, 6, dtype=torch.bool)
    world(model, *inputs)
    y = model(*inputs)
    y.square().mean().backward()
    assert type(y) is torch.Tensor and y.isfinite().all() and all(p.grad is not None for p in model.parameters())

def test_timms_swin_block_asks_its_attention_by_a_method_of_its_own():
    "`SwinBlock` replaces `_attn`, the way into the windows and back, and nothing else"
    asked = []
    class Asked(SwinBlock):
        def _attn(self, x):
            asked.append(x.shape)
            return super()._attn(x)
    block = Asked(8, num_heads=2, window_size=4, shift_size=2)
    assert block(torch.ones(1, 6, 9, 8)).shape == (1, 6, 9, 8) and asked == [(1, 6, 9, 8)]
    assert {'always_partition', 'dynamic_mask'} <= signature(SwinTransformerBlock).parameters.keys()

def test_a_bar_of_bars_draws_nothing_by_itself(capsys):
    "`EpochLines` puts one in the place of fastai's, for `ShowGraphCallback`"
    bar = MasterBar([], ProgressBar)
    bar.update_graph([[[1, 2], [3, 4]]], (0, 2), (0, 4))
    assert capsys.readouterr().out == ''

def test_modes_see_functions_before_they_are_taken_apart():
    "`macs_by_module` prices what a model calls, and not what PyTorch makes of it"
    seen = set()
    class Names(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.add(func.__name__)
            return func(*args, **(kwargs or {}))
    x, layer = torch.ones(2, 3, 4), torch.nn.MultiheadAttention(4, 2)
    with Names():
        x @ x.mT
        torch.nn.functional.layer_norm(x, (4,))
        layer(x, x, x)
    assert {'layer_norm', 'multi_head_attention_forward'} < seen and {'matmul', '__matmul__'} & seen
    assert 'linear' not in seen # it is inside the attention layer, and would count twice

def test_fake_tensors_and_dispatch_modes_give_memory():
    "`42_profile` computes with both: twice the images, twice the activations; bfloat16 keeps less"
    small = dict(size='nano', img_size=64, device='cpu')
    one, two, half = (training_memory(*setting, **small)['activations'] for setting in ((4,), (8,), (8, 'bf16')))
    assert two == pytest.approx(2*one, rel=.01) and half < .8*two
    with torch.device('meta'): model = create_model('lavt', 'sadlr', 'nano', 64)
    assert inference_memory(model, 64)['activations'] == 600/1024 # MiB

def test_a_fit_of_fastai_goes_through_what_a_checkpoint_replaces():
    "It asks the loader for `get_idxs`, the learner for `one_batch`, and leaves a cancelled epoch out"
    batches, orders = [], []
    class Watch(Callback):
        order = 65 # after the recorder, as `Checkpoint`
        def before_train(self):
            get_idxs = self.dl.get_idxs
            self.dl.get_idxs = lambda: orders.append(1) or list(get_idxs())[self.dl.bs:]
        def before_epoch(self):
            if self.epoch == 0: raise CancelEpochException
    learn = synth_learner(n_trn=5, n_val=2)
    learn.one_batch = lambda i, batch: batches.append(i) or type(learn).one_batch(learn, i, batch)
    with learn.no_logging(), learn.no_bar(): learn.fit(2, cbs=Watch())
    assert len(orders) == 1 and batches == [0, 1, 2, 3, 0, 1]

def test_fastai_locks_the_learner_for_a_validation_alone():
    "It fires `before_fit` for both, and a checkpoint is of a fit"
    locked = []
    class Watch(Callback):
        def before_fit(self): locked.append(self.learn.lock.locked())
    learn = synth_learner(n_trn=2, n_val=2, cbs=Watch())
    with learn.no_logging(), learn.no_bar():
        learn.fit(1)
        learn.validate()
    assert locked == [False, True]

def test_fastai_has_the_methods_that_callbacks_step_into():
    assert {mode.value for mode in AMPMode} == {'fp16', 'bf16'} and MixedPrecision.order < 100
    assert callable(ParamScheduler._update_val) and callable(DistributedTrainer._wrap_dl)

def test_muon_beside_torchs_adamw():
    "It rests on AdamW's: a parameter without a gradient is left alone, and a state that is loaded has a step"
    weights = [[torch.nn.Parameter(torch.ones(4, 6)), torch.nn.Parameter(torch.ones(4))] for _ in range(3)]
    def muon(pair): return Muon([dict(params=pair[1:]), dict(params=pair[:1], muon=True)], lr=.1)
    def step(pair, optimizer, seed):
        for p in pair: p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
        optimizer.step()
    first, plain = muon(weights[0]), torch.optim.AdamW(weights[2][1:], lr=.1)
    step(weights[0], first, 0)
    step(weights[2], plain, 0)
    second = muon(weights[1])
    second.load_state_dict(deepcopy(first.state_dict()))
    for mine, yours in zip(weights[1], weights[0]): mine.data.copy_(yours.data)
    for pair, optimizer in zip(weights, (first, second, plain)): step(pair, optimizer, 1)
    for mine, yours in zip(*weights[:2]): assert torch.equal(mine, yours)
    assert torch.equal(weights[0][1], weights[2][1])
    assert not torch.equal(weights[0][0], torch.ones(4, 6)) and first.state[weights[0][0]]['step'] == 2
