"Language encoders of `transformers`: every tensor from the file, text parts of larger models, tied weights, one line else"
import json, warnings
from copy import deepcopy
import numpy as np, pytest, torch, transformers
from safetensors.torch import load_file, save
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedTokenizerFast
from sadlr.checkpoint import load_state, save_scored, save_state
from sadlr.training import check_vocabulary
from sadlr.models.build import ReferSegmenter, create_model
from sadlr.models.language import BertEncoder, TextEncoder, create_language
from sadlr.phrases import MAX_WORDS
from sadlr.preprocess import tokenize, word_tokenizer

TOKENIZER = word_tokenizer(['the red star left of the blue square'])
USUAL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
LLAMA = USUAL | dict(num_key_value_heads=1)
GEMMA = LLAMA | dict(head_dim=16)
T5 = dict(d_model=32, num_layers=2, num_heads=2, d_kv=16, d_ff=48)
BART = dict(d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=48, decoder_ffn_dim=48)
CLIP = USUAL | dict(bos_token_id=2, eos_token_id=3)
DISTIL = dict(dim=32, n_layers=2, n_heads=2, hidden_dim=48)
GPT = dict(n_embd=32, n_layer=2, n_head=2)
KINDS = {
    'bert': USUAL, 'distilbert': DISTIL, 'roberta': USUAL, 'xlm-roberta': USUAL, 'camembert': USUAL,
    'deberta-v2': USUAL, 'mpnet': USUAL, 'electra': USUAL | dict(embedding_size=16), 'modernbert': USUAL,
    'albert': USUAL | dict(embedding_size=16), 'eurobert': LLAMA, 'clip_text_model': CLIP, 'gpt2': GPT, 'qwen2': LLAMA,
    'qwen3': GEMMA, 'llama': LLAMA, 'gemma': GEMMA, 'gemma3_text': GEMMA, 'mistral': LLAMA, 't5': T5, 'mt5': T5,
    'umt5': T5, 'longt5': T5, 'siglip_text_model': CLIP, 'siglip2_text_model': CLIP, 'bart': BART, 'mbart': BART,
    'altclip_text_model': USUAL | dict(project_dim=32), 'pegasus': BART, 'marian': BART | dict(decoder_vocab_size=60)}

def save_file(tensors, file):
    "In the place of a file that may still be mapped"
    content = save(tensors, {'format': 'pt'})
    file.unlink()
    file.write_bytes(content)

def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(t, b[k]) for k, t in a.items())

def trial(encoder, rows=MAX_WORDS):
    token_ids = torch.randint(5, 11, (2, rows), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(rows) < torch.tensor([[rows], [6]])
    with torch.no_grad(): return token_ids, mask, encoder(token_ids, mask)

@pytest.mark.parametrize('kind', KINDS)
def test_every_kind(kind):
    "One feature vector a token, whatever the padding holds and however much there is; rebuilt from `options`"
    if kind == 'eurobert' and kind not in CONFIG_MAPPING: pytest.skip('transformers 5.0 has none')
    encoder = TextEncoder(60, model_type=kind, pad_token_id=0, **KINDS[kind]).eval()
    token_ids, mask, words = trial(encoder)
    assert words.shape == (2, 20, 32) == (2, 20, encoder.dim) and (words[1, 6:] == 0).all() and words.isfinite().all()
    with torch.no_grad():
        close = dict(rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(encoder(token_ids.where(mask, 7), mask), words, **close)
        torch.testing.assert_close(encoder(token_ids.where(mask, 99), mask), words, **close) # no row of the vocabulary
        torch.testing.assert_close(encoder(token_ids[1:, :6], mask[1:, :6])[0], words[1, :6], **close)
        assert (encoder(token_ids.where(torch.arange(20) != 2, 5 + token_ids % 5), mask) - words)[0, 2].abs().max() > 1e-4
    again = TextEncoder(**json.loads(json.dumps(encoder.options))).eval()
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(trial(again)[2], words)

def saved(kind, folder, **options):
    config = CONFIG_MAPPING[kind](**options)
    torch.manual_seed(1)
    model = AutoModel.from_config(config)
    model.save_pretrained(folder)
    return model

VISION = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, image_size=32,
              patch_size=16)
QWEN = LLAMA | dict(vocab_size=60, rope_parameters=dict(rope_type='default', mrope_section=[2, 3, 3], rope_theta=1e4))
WHOLE = {
    'clip': dict(text_config=CLIP | dict(vocab_size=60), vision_config=VISION),
    'siglip': dict(text_config=CLIP | dict(vocab_size=60), vision_config=VISION),
    'siglip2': dict(text_config=CLIP | dict(vocab_size=60),
                    vision_config={k: v for k, v in VISION.items() if k != 'image_size'} | dict(num_patches=4)),
    'gemma3': dict(text_config=GEMMA | dict(vocab_size=60), vision_config=VISION, mm_tokens_per_image=4),
    'paligemma': dict(text_config=GEMMA | dict(model_type='gemma', vocab_size=60), projection_dim=32,
                      vision_config=VISION | dict(model_type='siglip_vision_model')),
    'llava': dict(text_config=LLAMA | dict(model_type='llama', vocab_size=60),
                  vision_config=VISION | dict(model_type='clip_vision_model')),
    'qwen2_vl': dict(text_config=QWEN, vision_config=dict(depth=1, embed_dim=32, hidden_size=32, num_heads=2))}
PART = dict(clip='text_model', siglip='text_model', siglip2='text_model')

def has_random(encoder, state):
    "Names of an encoder's tensors whose values are not those of a model, under a name with the same end"
    return [k for k, t in encoder.model.state_dict().items()
            if not any(name.endswith(k) and t.shape == s.shape and torch.equal(t, s) for name, s in state.items())]

@pytest.mark.parametrize('kind', WHOLE)
def test_the_text_part_of_a_larger_model(kind, tmp_path):
    "Each tensor is the file's, and the words are what the larger model's own text part says"
    model = saved(kind, tmp_path, **WHOLE[kind]).eval()
    encoder = TextEncoder(source=tmp_path).eval()
    part = getattr(model, PART.get(kind, 'language_model'))
    token_ids, mask, words = trial(encoder)
    with torch.no_grad(): expected = part(input_ids=token_ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(words[mask], expected[mask], rtol=1e-5, atol=1e-5)
    assert not has_random(encoder, model.state_dict())
    again = TextEncoder(**json.loads(json.dumps(encoder.options))).eval()
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(trial(again)[2], words)

@pytest.mark.parametrize('name, kind, options', [
    ('Gemma3ForConditionalGeneration', 'gemma3', {}), ('LlavaForConditionalGeneration', 'llava', {}),
    ('Qwen2VLForConditionalGeneration', 'qwen2_vl', {}), ('BertForMaskedLM', 'bert', USUAL),
    ('T5ForConditionalGeneration', 't5', T5), ('BartForConditionalGeneration', 'bart', BART),
    ('GPT2LMHeadModel', 'gpt2', GPT), ('RobertaForSequenceClassification', 'roberta', USUAL),
    ('Gemma3ForCausalLM', 'gemma3_text', GEMMA), ('CLIPTextModelWithProjection', 'clip_text_model', CLIP)])
def test_with_a_head(name, kind, options, tmp_path):
    "Heads and decoders are more than is needed; what is needed has the file's values"
    options = WHOLE.get(kind) or options | dict(vocab_size=60)
    torch.manual_seed(1)
    model = getattr(transformers, name)(CONFIG_MAPPING[kind](**options))
    model.save_pretrained(tmp_path)
    assert not has_random(TextEncoder(source=tmp_path), model.state_dict())

@pytest.mark.parametrize('kind', [k for k in KINDS if k in CONFIG_MAPPING and k != 'bert'] + [*WHOLE])
def test_bert_from_another_folder(kind, tmp_path):
    config = CONFIG_MAPPING[kind](**WHOLE.get(kind, {}))
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path} holds a '{kind}' model, not a BERT: language='auto'"):
        create_language('bert', source=tmp_path)

@pytest.mark.parametrize('language, kind, options, gone', [
    ('bert', 'bert', USUAL, 'encoder.layer.1.output.dense.weight'), ('auto', 'roberta', USUAL, 'LayerNorm.bias'),
    ('auto', 'gemma3', WHOLE['gemma3'], 'layers.1.mlp.up_proj.weight'), ('auto', 't5', T5, 'encoder.final_layer_norm.weight'),
    ('auto', 'bart', BART, 'encoder.layers.1.fc1.bias'), ('auto', 'clip', WHOLE['clip'], 'text_model.final_layer_norm.bias'),
    ('auto', 't5', T5, 'shared.weight')])
def test_a_missing_misshapen_or_broken_tensor_is_named(language, kind, options, gone, tmp_path):
    saved(kind, tmp_path, **(options if 'text_config' in options else options | dict(vocab_size=60)))
    file = tmp_path/'model.safetensors'
    whole = load_file(file)
    names = [k for k in whole if k.endswith(gone) and 'vision' not in k]
    assert names
    for change, told in ((None, 'has no fitting values'), (torch.zeros(3), 'has no fitting values'),
                         (torch.nan, 'not finite')):
        state = {k: t.clone() for k, t in whole.items()}
        for k in names:
            if change is None: del state[k]
            else: state[k] = change.clone() if isinstance(change, torch.Tensor) else torch.full_like(state[k], change)
        save_file(state, file)
        with pytest.raises(ValueError, match=told) as error: create_language(language, source=tmp_path)
        line = str(error.value)
        assert '\n' not in line and str(tmp_path) in line and (gone.split('.', 1)[-1] in line or 'embed' in line), line

def test_a_random_decoder_or_image_part_does_no_harm(tmp_path):
    for kind, options, part in (('bart', BART | dict(vocab_size=60), 'decoder'), ('clip', WHOLE['clip'], 'vision_model')):
        saved(kind, tmp_path, **options)
        file = tmp_path/'model.safetensors'
        save_file({k: t for k, t in load_file(file).items() if not k.startswith(part)}, file)
        TextEncoder(source=tmp_path)

@pytest.mark.parametrize('kind', ['funnel', 'vit', 'whisper', 'fnet', 'musicgen', 'canine'])
def test_no_text_encoder(kind):
    "What gives no hidden state for each token, or takes no mask, is told so in one line"
    small = {'funnel': dict(d_model=32, n_head=2, d_head=16, d_inner=48), 'fnet': dict(
        hidden_size=32, num_hidden_layers=1, intermediate_size=48), 'canine': USUAL}
    with pytest.raises(ValueError) as error: create_language('auto', 60, model_type=kind, **small.get(kind, {}))
    assert '\n' not in str(error.value) and kind in str(error.value)

@pytest.mark.parametrize('kind, more', [('aimv2_text_model', 1), ('mobilebert', 1), ('roberta', 0)])
def test_a_row_without_padding_is_read_as_one_with_it(kind, more):
    "AIMv2 looks both ways where nothing is masked, MobileBERT sees the next word's place: both get a column of padding"
    if kind not in CONFIG_MAPPING: pytest.skip('this transformers has none')
    options = dict(num_hidden_layers=2) if kind == 'mobilebert' else USUAL
    encoder = TextEncoder(60, model_type=kind, **options).eval()
    token_ids, mask, words = trial(encoder)
    with torch.no_grad(): alone = encoder(token_ids[1:, :6], mask[1:, :6])[0]
    assert encoder.more == more and (words[1, :6] - alone).abs().max() < 1e-4

def test_words_that_no_padding_leaves_alone(monkeypatch):
    def forward(self, ids, mask): return mask.float().mean(1)[:, None, None].expand(*ids.shape, 3)
    monkeypatch.setattr(TextEncoder, 'forward', forward)
    with pytest.raises(ValueError, match="'roberta' is no text encoder.*its words depend on the padding"):
        TextEncoder(60, model_type='roberta', **USUAL)

@pytest.mark.parametrize('language, options, told', [
    ('bert', dict(hiden_size=32), 'hidden_size'), ('bert', dict(dim=32), "'dim'"), ('gru', dict(dims=32), 'dims'),
    ('auto', dict(model_type='roberta', num_hiden_layers=2), 'num_hidden_layers'),
    ('auto', dict(model_type='distilbert', hiddendim=2), 'hidden_dim'), ('bert', dict(hidden_size='wide'), 'hidden_size'),
    ('bert', dict(hidden_size=-1), 'hidden_size'), ('auto', dict(model_type='bert', hidden_size=33), 'hidden size (33)'),
    ('auto', dict(model_type=3), '3'), ('gru', dict(dim=None), 'dim'), ('gru', dict(num_layers=0), 'num_layers')])
def test_misspelt_options(language, options, told):
    with pytest.raises(ValueError) as error: create_language(language, 60, **options)
    assert '\n' not in str(error.value) and told in str(error.value)

@pytest.mark.parametrize('encoder', [
    BertEncoder(60, max_position_embeddings=16, **USUAL).eval(),
    TextEncoder(60, model_type='distilbert', max_position_embeddings=16, **DISTIL).eval()])
def test_more_tokens_than_positions(encoder):
    assert trial(encoder, 16)[2].shape == (2, 16, 32)
    with pytest.raises(ValueError, match='rows of 20 tokens.*16 positions'): trial(encoder)

@pytest.mark.parametrize('kind', ['t5', 'umt5', 'bart', 'siglip_text_model', 'roberta'])
def test_tied_weights_are_saved_once(kind, tmp_path):
    torch.manual_seed(0)
    options = dict(model_type=kind, **KINDS[kind])
    model = create_model(size='nano', img_size=64, language='auto', tokenizer=TOKENIZER, language_options=options).eval()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path/'model.safetensors')
    def objects(model): return len({id(t) for t in model.state_dict(keep_vars=True).values()})
    back = ReferSegmenter.from_pretrained(tmp_path)
    assert len(tensors) == objects(model) == objects(back) and back.state_dict().keys() == model.state_dict().keys()
    assert same_state(back, model)
    word_vectors = next(k for k in tensors if tensors[k].shape[:1] == (len(TOKENIZER),) and k.startswith('language'))
    save_file({k: t for k, t in tensors.items() if k != word_vectors}, tmp_path/'model.safetensors')
    with pytest.raises(ValueError, match=f'missing.*{word_vectors}'): ReferSegmenter.from_pretrained(tmp_path)
    save_file(tensors | {'language.x': torch.zeros(1)}, tmp_path/'model.safetensors')
    with pytest.raises(ValueError, match='1 foreign .*language.x'): ReferSegmenter.from_pretrained(tmp_path)

PHOTO = np.random.RandomState(0).randint(0, 255, (50, 60, 3), np.uint8)
SMALL = dict(size='nano', img_size=64, tokenizer=TOKENIZER)
PARTS = [dict(encoder='lavt'), dict(encoder='vlt'), dict(encoder='lts'), dict(head='classifier'), dict(head='cgan'),
         dict(encoder='timm', encoder_options=dict(backbone='resnet18')), dict(language='gru')] + [
         dict(language='auto', language_options=dict(model_type=kind, **KINDS[kind]))
         for kind in ('t5', 'siglip_text_model', 'llama', 'bart', 'modernbert')]

@pytest.mark.parametrize('parts', PARTS, ids=str)
def test_models_of_any_precision(parts):
    "Half, double, autocast and another default: photos are taken as they come, and the answer is close"
    torch.manual_seed(0)
    parts = SMALL | dict(img_size=32) | parts # many CPUs emulate 16 bits
    model = create_model(**parts).eval()
    phrases = ['red star', 'the star left of the blue square']
    expected = np.stack([answer.scores for answer in model.segment(PHOTO, phrases)])
    for dtype, most in ((torch.double, 1e-4), (torch.half, .2), (torch.bfloat16, 1)):
        other = deepcopy(model).to(dtype)
        assert np.abs(np.stack([a.scores for a in other.segment(PHOTO, phrases)]) - expected).max() < most
        if dtype is not torch.double:
            for m in (model, other):
                with torch.autocast('cpu', dtype): scores = np.stack([a.scores for a in m.segment(PHOTO, phrases)])
                assert scores.dtype == np.float32 and np.abs(scores - expected).max() < most
        assert other(torch.zeros(2, 3, 32, 32), torch.tensor([[2, 5, 3], [2, 3, 0]])).dtype == dtype
    torch.set_default_dtype(torch.double)
    try: assert create_model(**parts).segment(PHOTO, 'red star').scores.dtype == np.float32
    finally: torch.set_default_dtype(torch.float)

def test_segment_tells_unknown_words():
    model = create_model(**SMALL | dict(tokenizer=word_tokenizer(['the red star']))).eval()
    with pytest.raises(ValueError, match="none of the words .'crimson', 'roundel'"): model.segment(PHOTO, 'crimson roundel')
    with pytest.warns(UserWarning, match="50.0% of the words.*'crimson'"): model.segment(PHOTO, 'crimson star')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model.segment(PHOTO, 'crimson star')
    with pytest.warns(UserWarning, match='roundel'): model.segment(PHOTO, ['the star', 'roundel'])

def padded_otherwise(end):
    "A tokenizer whose padding is not 0 and, unless `end` is one, was not named"
    tokens = {'a': 0, 'red': 1, 'star': 2, '?': 3, '<end>': 4}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(tokens, '?')), unk_token='?',
                                   **({'eos_token': '<end>'} if end else {}))

@pytest.mark.parametrize('end', [True, False])
@pytest.mark.parametrize('language', ['bert', 'gru', 'auto'])
def test_a_tokenizer_without_padding(end, language, tmp_path):
    "Word 0 is a word and the padding is not, with and without a mask, named or not, and after saving"
    tokenizer = padded_otherwise(end)
    tokenizer.backend_tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save_pretrained(tmp_path/'words')
    options = dict(model_type='gpt2', **GPT) if language == 'auto' else {}
    def build(tokenizer, **o):
        torch.manual_seed(0)
        return create_model('lavt', 'classifier', **SMALL | dict(tokenizer=tokenizer), language=language,
                            language_options=options | o).eval()
    model = build(tokenizer)
    pad = model.pad_id
    assert pad == model.tokenizer.pad_token_id == (4 if end else 5)
    token_ids, mask = tokenize(['a red star', 'a'], model.tokenizer)
    assert (token_ids[~mask] == pad).all() and mask.sum() == 4
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad(): expected = model(images, token_ids)
    with torch.no_grad(): torch.testing.assert_close(model(images, token_ids, mask), expected, rtol=1e-4, atol=1e-5)
    named = build(str(tmp_path/'words'), vocab_size=len(model.tokenizer))
    assert named.pad_id == pad
    with torch.no_grad(): assert torch.equal(named(images, token_ids), expected)
    model.save_pretrained(tmp_path/'model')
    back = ReferSegmenter.from_pretrained(tmp_path/'model')
    with torch.no_grad(): assert back.pad_id == pad and torch.equal(back(images, token_ids), expected)

def test_trained_weights_with_a_padding_that_they_lack(tmp_path):
    saved('gpt2', tmp_path, **GPT, vocab_size=5)
    tokenizer = padded_otherwise(False)
    tokenizer.backend_tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save_pretrained(tmp_path)
    model = create_model(**SMALL | dict(tokenizer=str(tmp_path)), pretrained=False, language='auto',
                         language_options=dict(model_type='gpt2', **GPT))
    encoder = TextEncoder(source=tmp_path, pad_token_id=model.pad_id).eval()
    assert model.pad_id == 5 and encoder.pad_id < 5
    token_ids, mask = tokenize(['a red star'], model.tokenizer)
    with torch.no_grad(): assert encoder(token_ids, mask).isfinite().all()
    model.config['language_options']['vocab_size'] = 5 # of trained weights
    check_vocabulary(model, exactly=False)
    model.config['language_options']['vocab_size'] = 4
    with pytest.raises(ValueError, match='the tokenizer has 5 tokens, the language encoder 4'): check_vocabulary(model, exactly=False)

@pytest.mark.parametrize('kind', ['t5', 'bart'])
def test_the_first_checkpoint_of_a_fit_with_tied_weights(kind, tmp_path):
    torch.manual_seed(0)
    model = create_model(**SMALL, language='auto', language_options=dict(model_type=kind, **KINDS[kind])).eval()
    save_scored(model, tmp_path/'model', {'oIoU': 1.})
    back = ReferSegmenter.from_pretrained(tmp_path/'model')
    assert np.array_equal(back.segment(PHOTO, 'red star').scores, model.segment(PHOTO, 'red star').scores)
    save_state(dict(model=model.state_dict()), tmp_path/'state.pt')
    back.load_state_dict(load_state(tmp_path/'state.pt')['model'])

def test_folders_saved_with_every_name_still_load(tmp_path):
    torch.manual_seed(0)
    model = create_model(**SMALL, language='auto', language_options=dict(model_type='t5', **T5)).eval()
    model.save_pretrained(tmp_path)
    save_file({k: t.clone() for k, t in model.state_dict().items()}, tmp_path/'model.safetensors')
    back = ReferSegmenter.from_pretrained(tmp_path)
    assert same_state(back, model)
