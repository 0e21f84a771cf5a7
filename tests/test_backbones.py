"Backbones of timm of every kind: numbers that fit, weights bound to a size, pixels as they were trained, small batches"
import json, sys, warnings
import numpy as np, pytest, timm, torch
from fastai.data.core import DataLoaders
from PIL import Image
from torch import nn
from sadlr import cli
from sadlr.data.block import refer_dataloaders, refer_samples
from sadlr.data.shapes import make_shapes
from sadlr.evaluation import evaluation_loader
from sadlr.explain import trace
from sadlr.learner import refer_learner
from sadlr.models.build import ReferSegmenter, bundled, create_model
from sadlr.models.timm_encoder import TimmEncoder, create_backbone
from sadlr.preprocess import IMAGENET, Preprocessing, image_tensor

def complaint(call, *args, **kwargs):
    "The one line that a call is refused with"
    with pytest.raises(ValueError) as error: call(*args, **kwargs)
    assert '\n' not in str(error.value) and len(str(error.value)) < 700
    return str(error.value)

def small(**options): return create_model(**dict(size='nano', img_size=32, language='gru') | options)

def on_meta(*args, **kwargs):
    with torch.device('meta'): return TimmEncoder(*args, **kwargs)

# Numbers that do not divide

HEADS = dict(rexnet_100=1, rexnet_130=1, rexnet_150=1, rexnet_200=1, rexnet_300=1, pnasnet5large=3, tresnet_xl=1,
             convnext_atto=4, resnet10t=4, vit_tiny_patch16_224=4, swin_tiny_patch4_window7_224=4, xcit_nano_12_p16_224=4)

@pytest.mark.parametrize('name, most', HEADS.items())
def test_heads_of_the_fusion_fit_every_backbone(name, most):
    "As many as divide the channels of all maps, up to four"
    encoder = on_meta('nano', 16, 64, backbone=name, fusion_heads=None)
    dims = [fusion.vis_project.in_features for fusion in encoder.fusions]
    assert {fusion.num_heads for fusion in encoder.fusions} == {most}
    assert [n for n in (1, 2, 3, 4) if all(dim % n == 0 for dim in dims)][-1] == most

def test_a_nano_model_of_a_rexnet(tmp_path):
    "It is built, answers, is saved and comes back"
    model = small(encoder='timm', encoder_options=dict(backbone='rexnet_100')).eval()
    inputs = torch.randn(1, 3, 32, 32), torch.ones(1, 3).long()
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(ReferSegmenter.from_pretrained(tmp_path)(*inputs), model(*inputs))

TIMM = dict(encoder='timm', backbone='test_convnext')
@pytest.mark.parametrize('part, options', [
    ('encoder', dict(fusion_heads=n, **TIMM)) for n in (0, -1, 3, 5, 2.5, '4')] + [
    ('encoder', dict(channels=-1, **TIMM)), ('encoder', dict(out_indices=(0, 99), **TIMM)),
    ('encoder', dict(num_heads=5, encoder='timm', backbone='test_vit')),
    ('encoder', dict(num_heads=0, encoder='timm', backbone='test_vit')),
    ('encoder', dict(fusion_heads=0)), ('encoder', dict(fusion_heads=-1)), ('encoder', dict(channels=-1)),
    ('encoder', dict(encoder='vlt', query_heads=0)), ('encoder', dict(encoder='vlt', query_heads=3)),
    ('head', dict(head='cgan', groups=0)), ('head', dict(head='cgan', width=0)), ('head', dict(head='cgan', width=5))],
    ids=str)
def test_numbers_that_do_not_divide_are_named(part, options):
    names = {name: options[name] for name in ('encoder', 'head') if name in options}
    options = {name: value for name, value in options.items() if name not in names}
    with warnings.catch_warnings(action='ignore'): told = complaint(small, **names, **{f'{part}_options': options})
    assert next(name for name in options if name != 'backbone').replace('width', 'groups') in told

def test_the_width_of_cgan_fits_any_encoder():
    class Grey(nn.Module):
        channels = 6
        def forward(self, image, words, token_mask): return image[:, :1, ::4, ::4].expand(-1, 6, -1, -1)
    assert small(encoder=Grey(), head='cgan').eval()(torch.randn(1, 3, 32, 32), torch.ones(1, 3).long()).isfinite().all()
    assert small(head='cgan').head.stem.out_channels == 32 # of 64, as ever

# Trained weights that are bound to a size

def trained(name, img_size, **options):
    "A backbone with weights of its own size; on the meta device, where they need no memory"
    with torch.device('meta'):
        weights = timm.create_model(name).state_dict()
        return create_backbone(name, img_size, True, pretrained_cfg_overlay=dict(state_dict=weights), **options)

BOUND = ['hiera_tiny_224', 'samvit_base_patch16', 'levit_128', 'levit_conv_128s', 'efficientformerv2_s0', 'volo_d1_224',
         'pit_ti_224', 'cait_xxs24_224']
RESAMPLED = ['vit_tiny_patch16_224', 'deit_tiny_patch16_224', 'beit_base_patch16_224', 'swin_tiny_patch4_window7_224',
             'swinv2_tiny_window8_256', 'maxvit_tiny_tf_224', 'xcit_nano_12_p16_224', 'mvitv2_tiny', 'resnet10t']

@pytest.mark.parametrize('name', BOUND)
def test_weights_bound_to_a_size_say_which(name):
    native = timm.get_pretrained_cfg(name).input_size[-1]
    trained(name, native)
    told = complaint(trained, name, 64)
    assert f'{name!r}: its weights are for images of {native} x {native} pixels' in told and 'img_size=64' in told

@pytest.mark.parametrize('name', RESAMPLED)
def test_weights_that_timm_resamples_load_at_any_size(name):
    assert trained(name, 64).feature_info.channels()

@pytest.mark.parametrize('name', ['hiera_tiny_224', 'vit_tiny_patch16_224'])
def test_the_size_is_not_blamed_for_other_options(name):
    told = complaint(trained, name, 64, embed_dim=48)
    assert 'weights are for' not in told and repr(name) in told

def test_weights_in_a_file(tmp_path):
    "As a model is made: the weights are those of the file, or the size is named"
    options = dict(backbone='hiera_tiny_224', stages=(1, 1, 1, 1), embed_dim=8, num_heads=1)
    weights = timm.create_model('hiera_tiny_224', **{k: v for k, v in options.items() if k != 'backbone'}).state_dict()
    torch.save(weights, tmp_path/'hiera.pth')
    options['pretrained_cfg_overlay'] = dict(file=str(tmp_path/'hiera.pth'))
    fine = small(encoder='timm', img_size=224, pretrained=True, encoder_options=options)
    state = fine.encoder.backbone.state_dict()
    assert all(any(torch.equal(t, weights[k]) for k in weights if name.endswith(k)) for name, t in state.items())
    told = complaint(small, encoder='timm', img_size=64, pretrained=True, encoder_options=options)
    assert 'its weights are for images of 224 x 224 pixels' in told

@pytest.mark.parametrize('name, side, reason', [
    ('test_vit', 8, 'divisible by patch size'), ('test_vit', 36, 'divisible by patch size'), ('test_convnext', 4, 'Kernel size'),
    ('hiera_tiny_224', 100, 'invalid for input'), ('mvitv2_tiny', 36, 'out of bounds'), ('levit_128', 36, 'must match'),
    ('efficientformer_l1', 64, '224 x 224'), ('halonet26t', 100, 'AssertionError')])
def test_sizes_that_a_backbone_cannot_take(name, side, reason):
    "In one line, with the backbone's name and the size"
    encoder = TimmEncoder('nano', 8, side, backbone=name).eval()
    told = complaint(encoder, torch.zeros(1, 3, side, side), torch.zeros(1, 2, 8), torch.ones(1, 2))
    assert f'backbone={name!r} failed on images of {side} x {side} pixels' in told and reason in told

@pytest.mark.parametrize('name', ['inception_v4', 'legacy_xception'])
def test_maps_without_a_border_give_the_same_y(name):
    "Some backbones leave out a border; Y has a quarter of the side all the same"
    encoder = on_meta('nano', 8, 128, backbone=name).eval()
    y = encoder(*(torch.zeros(shape, device='meta') for shape in ((1, 3, 128, 128), (1, 2, 8), (1, 2))))
    assert y.shape[2:] == (32, 32)

# A backbone's own pixels

HALVES = Preprocessing((.5,)*3, (.5,)*3, 'bicubic')
CLIP = Preprocessing((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), 'bicubic')

@pytest.mark.parametrize('name, seen', [
    ('vit_base_patch16_siglip_256', HALVES), ('vit_base_patch16_siglip_gap_256', HALVES), ('beit_base_patch16_224', HALVES),
    ('vit_base_patch16_clip_224', CLIP), ('vit_base_patch16_clip_224.openai', CLIP), ('resnet50_clip', CLIP),
    ('convnext_tiny', IMAGENET._replace(interpolation='bicubic')), ('resnet50.tv_in1k', IMAGENET),
    ('inception_v4', None), ('tf_efficientnet_b0', None), ('mobilevit_s', None), ('samvit_base_patch16', None)])
def test_preprocessing_is_the_backbones(name, seen):
    said = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    said = Preprocessing(tuple(said['mean']), tuple(said['std']), said['interpolation'])
    assert on_meta('nano', 8, 256, backbone=name).preprocessing == said == (seen or said)

def test_preprocessing_of_the_other_encoders():
    "ImageNet's with a bilinear filter, as LAVT has it; own encoders may say otherwise, and the caller has the last word"
    class Own(nn.Module):
        channels = 8
        def forward(self, image, words, token_mask): return image[:, :1, ::4, ::4].expand(-1, 8, -1, -1)
    for encoder in ('lavt', 'vlt', 'lts', Own()): assert small(encoder=encoder).preprocessing == IMAGENET
    for given in (HALVES, tuple(HALVES), HALVES._asdict()):
        own = Own()
        own.preprocessing = given
        assert small(encoder=own).preprocessing == HALVES
    assert small(encoder=own, preprocessing=CLIP).preprocessing == CLIP
    for wrong in (dict(mean=(0,)*3), dict(mean=(0,)*3, std=(0,)*3), dict(mean=0, std=1), (1, 2, 3, 4),
                  HALVES._replace(interpolation='cubic')):
        assert 'preprocessing' in complaint(small, preprocessing=wrong)

@pytest.fixture(scope='module')
def refer(tmp_path_factory): return make_shapes(tmp_path_factory.mktemp('shapes'), n_images=12, img_size=48)

def pixels_seen(model, call):
    "What reaches the encoder"
    seen = []
    with model.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0])): call()
    return torch.cat(seen)

SIGLIP = dict(backbone='vit_base_patch16_siglip_256', embed_dim=24, depth=3, num_heads=2)

def test_the_same_pixels_everywhere(refer, tmp_path):
    "Training, evaluation, segment and trace see a photo as the backbone was trained; so does the model that comes back"
    dls = refer_dataloaders(refer, img_size=32, bs=2, num_workers=0, device='cpu', preprocessing=HALVES)
    model = small(encoder='timm', tokenizer=dls.tokenizer, encoder_options=SIGLIP)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path/'config.json').read_text())['preprocessing'] == dict(
        mean=[.5]*3, std=[.5]*3, interpolation='bicubic')
    sample = refer_samples(refer, 'train')[0]
    photo = Image.open(sample.image)
    want = torch.from_numpy(np.array(photo.resize((32, 32), Image.BICUBIC))).permute(2, 0, 1)/127.5 - 1 # SigLIP's own
    train = dls.train.new(shuffle=False, drop_last=False).one_batch()[0].as_subclass(torch.Tensor)
    torch.testing.assert_close(train[0], want, rtol=0, atol=3/255)
    for asked in (model, ReferSegmenter.from_pretrained(tmp_path)):
        loader = evaluation_loader(refer_samples(refer, 'train'), asked, bs=1)
        ways = dict(evaluation=loader.one_batch()[0].as_subclass(torch.Tensor),
                    segment=pixels_seen(asked, lambda: asked.segment(sample.image, sample.phrase)),
                    trace=pixels_seen(asked, lambda: trace(asked, sample.image, sample.phrase)))
        for way, pixels in ways.items(): torch.testing.assert_close(pixels[0], train[0], msg=way)
    square = torch.from_numpy(trace(model, sample.image, sample.phrase).image).permute(2, 0, 1)
    torch.testing.assert_close(square/127.5 - 1, train[0])
    bilinear = image_tensor(sample.image, 32, HALVES._replace(interpolation='bilinear'))
    assert (bilinear - train[0]).abs().max() > 10/255

def test_older_configurations_have_imagenets_pixels(tmp_path):
    "Whatever the encoder, that is what those models were trained on"
    small(encoder='timm', encoder_options=dict(backbone='test_convnext')).save_pretrained(tmp_path)
    config = json.loads((tmp_path/'config.json').read_text())
    assert Preprocessing(**config.pop('preprocessing')).check() == HALVES
    (tmp_path/'config.json').write_text(json.dumps(config))
    older = ReferSegmenter.from_pretrained(tmp_path)
    assert older.preprocessing == IMAGENET == bundled().preprocessing
    older.save_pretrained(tmp_path/'again')
    assert ReferSegmenter.from_pretrained(tmp_path/'again').preprocessing == IMAGENET

def test_a_learner_refuses_other_pixels(refer):
    dls = refer_dataloaders(refer, img_size=32, bs=2, num_workers=0, device='cpu')
    halves = small(encoder='timm', tokenizer=dls.tokenizer, encoder_options=dict(backbone='test_convnext'))
    plain = DataLoaders([], []) # of somebody else, that say nothing
    for loaders in (dls, plain):
        assert 'pass preprocessing=model.preprocessing' in complaint(refer_learner, loaders, halves)
        refer_learner(loaders, small(tokenizer=dls.tokenizer))
    assert complaint(refer_learner, dls, small(tokenizer=dls.tokenizer, preprocessing=IMAGENET._replace(
        interpolation='bicubic')))
    around = torch.nn.Sequential(halves) # as wrappers do it
    assert 'pass preprocessing=model.preprocessing' in complaint(refer_learner, dls, around)
    its = refer_dataloaders(refer, dls.tokenizer, 32, 2, num_workers=0, device='cpu', preprocessing=halves.preprocessing)
    refer_learner(its, halves)
    assert 'pass preprocessing=model.preprocessing' in complaint(refer_learner, its, small(tokenizer=dls.tokenizer))

# One value per channel

class Normed(nn.Module):
    "An encoder of somebody else, with a normalisation of whole images"
    channels = 8
    def __init__(self, norm):
        super().__init__()
        self.see, self.norm = nn.Conv2d(3, 8, 1), norm(8)
    def forward(self, image, words, token_mask):
        return self.see(image[:, :, ::4, ::4]) + self.norm(self.see(image).mean((2, 3), keepdim=True))

ONE = 'a normalisation layer got one value per channel: train with at least two images in a forward pass (bs, accumulate)'
@pytest.mark.parametrize('options, side', [
    *((dict(encoder='timm', encoder_options=dict(backbone=name)), 32) for name in ('resnet10t', 'rexnet_100')),
    *((dict(encoder='lavt', head=head), 4) for head in ('sadlr', 'classifier', 'cgan')),
    (dict(encoder='norm'), 32)], ids=str)
def test_one_value_per_channel_is_one_line(options, side):
    if options['encoder'] == 'norm': options = options | dict(encoder=Normed(nn.BatchNorm2d))
    model, image, ids = small(**options, img_size=side), torch.randn(2, 3, side, side), torch.ones(2, 3).long()
    assert ONE in complaint(model.train(), image[:1], ids[:1])
    model.train()(image, ids)
    model.eval()(image[:1], ids[:1])

def test_instance_normalisation_of_one_pixel_too():
    model = small(encoder=Normed(nn.InstanceNorm2d))
    assert 'or with larger ones (img_size)' in complaint(model.train(), torch.randn(2, 3, 32, 32), torch.ones(2, 3).long())

def test_other_errors_of_a_model_stay_their_own():
    class Broken(Normed):
        def forward(self, image, words, token_mask): raise ValueError('my own')
    assert complaint(small(encoder=Broken(nn.BatchNorm2d)), torch.randn(2, 3, 32, 32), torch.ones(2, 3).long()) == 'my own'

TRAIN = ['sadlr_train', '--n_images', '12', '--epochs', '1', '--img_size', '32', '--encoder', 'timm', '--language', 'gru']
@pytest.mark.parametrize('words', [('--bs', '1'), ('--bs', '2', '--accumulate', '2')])
def test_sadlr_train_says_so_too(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [*TRAIN, '--encoder_options', '{"backbone": "resnet10t"}', *words])
    with pytest.raises(SystemExit) as stop: cli.sadlr_train()
    assert str(stop.value).startswith(f'sadlr_train: {ONE}') and '\n' not in str(stop.value)

def test_sadlr_train_takes_the_backbones_pixels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [*TRAIN, '--encoder_options', '{"backbone": "test_convnext"}', '--bs', '4'])
    cli.sadlr_train()
    assert ReferSegmenter.from_pretrained('runs/shapes/model').preprocessing == HALVES
