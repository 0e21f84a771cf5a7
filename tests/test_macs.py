"Multiply-accumulates are counted by what a function is: the same integers on every PyTorch, however a product is spelt"
import warnings
import pytest, torch
import torch.nn.functional as F
from torch import nn
from sadlr.profile import count_macs, macs_by_module, shared_models

TABLE_3 = { # fvcore's integers for LAVT; all nine equal on torch 2.6, 2.14.1 and 2.15
    ('lts', 'classifier'): 132_989_421_056, ('lts', 'cgan'): 143_430_304_256, ('lts', 'sadlr'): 139_035_943_424,
    ('vlt', 'classifier'): 142_433_459_200, ('vlt', 'cgan'): 152_874_342_400, ('vlt', 'sadlr'): 148_479_981_568,
    ('lavt', 'classifier'): 197_107_504_128, ('lavt', 'cgan'): 207_548_387_328, ('lavt', 'sadlr'): 203_154_026_496}

def test_the_nine_systems_of_table_3():
    models = shared_models(['lts', 'vlt', 'lavt'], ['classifier', 'cgan', 'sadlr'])
    assert {name: count_macs(model) for name, model in models.items()} == TABLE_3

class Call(nn.Module):
    "A function as a module"
    def __init__(self, function):
        super().__init__()
        self.function = function
    def forward(self, *args): return self.function(*args)

def macs(function, *shapes):
    module = function if isinstance(function, nn.Module) else Call(function)
    return macs_by_module(module, *(torch.ones(shape) for shape in shapes))['']

A, B, C = (5, 7), (7, 4), (5, 4)
BATCHED = (3, 5, 7), (3, 7, 4)

@pytest.mark.parametrize('spelling', [
    lambda a, b: a @ b, lambda a, b: torch.matmul(a, b), lambda a, b: a.matmul(b), lambda a, b: torch.mm(a, b),
    lambda a, b: a.mm(b), lambda a, b: torch.matmul(input=a, other=b), lambda a, b: F.linear(a, b.mT),
    lambda a, b: F.linear(input=a, weight=b.mT), lambda a, b: torch.einsum('pc,ck->pk', a, b),
    lambda a, b: torch.einsum('pc,ck', [a, b]), lambda a, b: torch.einsum('...c,ck->...k', a, b),
    lambda a, b: torch.tensordot(a, b, 1), lambda a, b: torch.inner(a, b.mT),
    lambda a, b: torch.addmm(a.new_ones(4), a, b), lambda a, b: a.new_ones(C).addmm_(a, b),
    lambda a, b: torch.bmm(a[None], b[None]), lambda a, b: torch.baddbmm(a.new_ones(1, 5, 4), a[None], b[None]),
    lambda a, b: torch.addbmm(a.new_ones(C), a[None], b[None]), lambda a, b: F.conv1d(a.mT[None], b.mT[..., None]),
    lambda a, b: torch.stack([torch.mv(a, column) for column in b.mT]),
    lambda a, b: torch.stack([torch.dot(row, column) for row in a for column in b.mT])])
def test_one_product_in_every_spelling(spelling): assert macs(spelling, A, B) == 5*7*4

@pytest.mark.parametrize('spelling', [
    lambda a, b: a @ b, lambda a, b: torch.bmm(a, b), lambda a, b: torch.einsum('bpc,bck->bpk', a, b),
    lambda a, b: torch.einsum('...pc,...ck->...pk', a, b), lambda a, b: a[:, None] @ b[:, None],
    lambda a, b: torch.baddbmm(a.new_ones(1), a, b), lambda a, b: torch.addbmm(a.new_ones(C), a, b)])
def test_a_product_for_each_of_a_batch(spelling): assert macs(spelling, *BATCHED) == 3*5*7*4

def test_broadcasting_counts_what_comes_out():
    assert macs(torch.matmul, (6, 1, 5, 7), (3, 7, 4)) == 6*3*5*7*4
    assert macs(torch.matmul, (7,), (3, 7, 4)) == macs(torch.matmul, (3, 4, 7), (7,)) == 3*7*4
    assert macs(lambda a, b: torch.einsum('bpc,bck->bpk', a, b), (1, 5, 7), (3, 7, 4)) == 3*5*7*4

def test_einsum_contracts_from_left_to_right():
    assert macs(lambda *x: torch.einsum('ab,bc,cd->ad', *x), (2, 3), (3, 5), (5, 7)) == 2*3*5 + 2*5*7
    assert macs(lambda *x: torch.einsum('ab,ab->ab', *x), (2, 3), (2, 3)) == 0 # no sum, so no product of matrices
    assert macs(lambda *x: torch.einsum('abc,bd->ad', *x), (2, 3, 9), (3, 5)) == 2*3*5 # c is summed before
    assert macs(lambda x: torch.einsum('ab->b', x), (2, 3)) == 0

def slow_convolution(module, x):
    "Visit every output, and count the weights that make it; what lies in the padding counts too"
    return sum(module.weight[i % len(module.weight)].numel() for _ in range(len(x)) for i in range(module(x)[0].numel()))

@pytest.mark.parametrize('module, shape', [
    (nn.Conv1d(4, 6, 3, groups=2), (2, 4, 9)), (nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4), (2, 4, 5, 6)),
    (nn.Conv2d(3, 5, (1, 3), dilation=2), (1, 3, 4, 9)), (nn.Conv3d(2, 3, 2), (1, 2, 3, 4, 5))])
def test_convolutions(module, shape): assert macs(module, shape) == slow_convolution(module, torch.ones(shape))

def test_transposed_convolution_costs_what_its_adjoint_costs():
    "The gradient of a convolution, which it is, makes the same products"
    down, up = nn.Conv2d(6, 4, 3, stride=3, groups=2), nn.ConvTranspose2d(4, 6, 3, stride=3, groups=2)
    assert macs(up, (2, 4, 3, 5)) == macs(down, (2, 6, 9, 15))

class WrittenAttention(nn.Module):
    "Attention from linear layers and products; `extra` more positions to look at"
    def __init__(self, dim, heads, kdim, vdim, extra=0):
        super().__init__()
        self.heads, self.extra = heads, extra
        self.q, self.k, self.v, self.o = (nn.Linear(n, dim) for n in (dim, kdim, vdim, dim))
    def split(self, x): return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
    def forward(self, query, key, value):
        k, v = (F.pad(x, (0, 0, 0, self.extra)) for x in (self.k(key), self.v(value)))
        q, k, v = map(self.split, (self.q(query), k, v))
        return self.o(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))

@pytest.mark.parametrize('options, extra', [({}, 0), (dict(kdim=6, vdim=10), 0), (dict(add_bias_kv=True), 1),
                                            (dict(add_zero_attn=True), 1), (dict(bias=False), 0)])
@pytest.mark.parametrize('need_weights', [False, True])
def test_attention_layer_costs_what_its_parts_cost(options, extra, need_weights):
    kdim, vdim = options.get('kdim', 8), options.get('vdim', 8)
    layer = nn.MultiheadAttention(8, 2, batch_first=True, **options)
    shapes = (3, 5, 8), (3, 7, kdim), (3, 7, vdim)
    written = macs(WrittenAttention(8, 2, kdim, vdim, extra), *shapes)
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer
        def forward(self, *x): return self.layer(*x, need_weights=need_weights)[0]
    assert macs(Whole(), *shapes) == written

def test_fused_attention_with_few_keys_for_many_heads():
    "Grouped queries: two heads share the keys of one; values may be of another length"
    q, k, v = (2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 6)
    written = macs(lambda q, k, v: (q @ (k := k.repeat_interleave(2, 1)).mT).softmax(-1) @ v.repeat_interleave(2, 1), q, k, v)
    assert macs(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), q, k, v) == written

@pytest.mark.parametrize('kind, gates', [(nn.GRU, 3), (nn.LSTM, 4), (nn.RNN, 1)])
@pytest.mark.parametrize('directions', [1, 2])
def test_recurrent_networks(kind, gates, directions):
    "Every token meets the two matrices of each gate, direction and layer"
    layers, hidden = 2, 6
    by_hand = 3*5*directions*gates*hidden*((4 + hidden) + (directions*hidden + hidden))
    network = kind(4, hidden, layers, batch_first=True, bidirectional=directions == 2)
    assert macs(network, (3, 5, 4)) == by_hand

def test_norms_and_upsampling():
    assert macs(nn.GroupNorm(2, 6), (2, 6, 5)) == macs(nn.LayerNorm(5), (2, 6, 5)) == 5*60
    assert macs(nn.InstanceNorm1d(6, affine=True), (2, 6, 5)) == 5*60
    assert macs(nn.InstanceNorm1d(6, track_running_stats=True), (2, 6, 5)) == 60
    assert macs(nn.Upsample(scale_factor=2), (1, 1, 3, 3)) == 0
    assert macs(lambda x: F.interpolate(x, scale_factor=2, mode='bilinear'), (1, 1, 3, 3)) == 4*36

def test_what_cannot_be_priced_is_told():
    with pytest.warns(UserWarning, match='cdist'): macs(torch.cdist, A, A)
    with pytest.warns(UserWarning, match='fft_rfft2'): macs(torch.fft.rfft2, A)
    with warnings.catch_warnings(action='error'): macs(lambda a, b: (a.relu() + 1).cumsum(0).sort()[0] @ b, A, B)

def test_each_module_gets_what_it_calls():
    "Used twice it counts twice; the sum of the parts is the whole; hooks are gone afterwards, also after an error"
    inner = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    outer = nn.Sequential(inner, inner, nn.Linear(3, 2))
    assert macs_by_module(outer, torch.ones(1, 3)) == {'': 24, '0': 18, '0.0': 18, '2': 6}
    with pytest.raises(RuntimeError): macs_by_module(outer, torch.ones(1, 4))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in outer.modules())
