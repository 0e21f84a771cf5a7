"The web page: a Space's folder is run where there is no PyTorch, and asked over HTTP; what is missing is one line"
import os, socket, subprocess, sys, time
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen
import numpy as np, pytest, yaml
from PIL import Image
from sadlr.app import CARD, answer, sadlr_demo, show
from sadlr.export import OnnxSegmenter
from sadlr.pictures import VIEWS

repo = Path(__file__).parent.parent
needs_gradio = pytest.mark.skipif(not find_spec('gradio'), reason='needs the demo extra: pip install -e ".[demo]"')

@pytest.fixture(scope='module')
def space(tmp_path_factory):
    folder = tmp_path_factory.mktemp('app')/'space'
    sadlr_demo(space=folder)
    return folder

@pytest.fixture(scope='module')
def there(tmp_path_factory):
    "What the extras onnx and demo bring, and nothing else"
    folder = tmp_path_factory.mktemp('there')
    for extra in 'onnx', 'demo': subprocess.run([sys.executable, repo/'.ci'/'borrow', folder, extra], check=True)
    return folder

RUN = '''
import runpy, sys
from importlib.util import find_spec
sys.path[:0] = sys.argv[1:]
assert not [name for name in ('torch', 'transformers', 'fastai', 'scipy', 'matplotlib') if find_spec(name)]
runpy.run_path('app.py')
'''

@pytest.fixture(scope='module')
def client(space, there, tmp_path_factory):
    "Of the page that the Space's own app.py serves"
    from gradio_client import Client
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    address, log = f'http://127.0.0.1:{port}', tmp_path_factory.mktemp('log')/'log'
    with open(log, 'w') as out:
        server = subprocess.Popen([sys.executable, '-I', '-S', '-c', RUN, repo, there], cwd=space, stdout=out, stderr=out,
                                  env=dict(os.environ, GRADIO_SERVER_PORT=str(port)))
        try:
            for _ in range(240):
                assert server.poll() is None, log.read_text()
                try: urlopen(address).close()
                except URLError: time.sleep(.5)
                else: break
            yield Client(address, verbose=False)
            assert 'Traceback' not in log.read_text(), log.read_text()
        finally:
            server.kill()
            server.wait()

@needs_gradio
def test_a_space_answers_without_pytorch(space, client):
    from gradio_client import handle_file
    photo = min((space/'examples').iterdir())
    for view in VIEWS:
        note, slider, picture, _ = client.predict(handle_file(photo), photo.stem, view, api_name='/ask')
        ours, _ = show(answer(OnnxSegmenter(space/'model.onnx'), photo, photo.stem), 3, view)
        np.testing.assert_array_equal(np.asarray(Image.open(picture)), ours)
        assert (slider['maximum'], slider['value'], note['visible']) == (3, 3, False)
    note, *_ = client.predict(handle_file(photo), 'the red dog', 'mask', api_name='/ask')
    assert '“dog”' in note['value'] and 'the 44 words' in note['value'] and note['visible']

@needs_gradio
@pytest.mark.parametrize('phrase, told', [('', 'the phrase is empty'), ('rotes Kreuz', 'has none of the words'),
                                          ('red '*19, '21 tokens'), (None, 'the phrase is no text')])
def test_errors_reach_the_page(space, client, phrase, told):
    from gradio_client import handle_file
    photo = handle_file(min((space/'examples').iterdir()))
    with pytest.raises(Exception, match=told): client.predict(photo, phrase, 'mask', api_name='/ask')

@needs_gradio
def test_a_file_that_is_no_picture(space, client, tmp_path):
    from gradio_client import handle_file
    (tmp_path/'notes.png').write_text('no picture')
    with pytest.raises(Exception, match='notes.png is no image that can be read: not one of JPEG'):
        client.predict(handle_file(tmp_path/'notes.png'), 'star', 'mask', api_name='/ask')
    with pytest.raises(Exception, match='choose a photo first'): client.predict(None, 'star', 'mask', api_name='/ask')

@needs_gradio
def test_the_header_of_a_space(space):
    import gradio
    _, header, text = (space/'README.md').read_text(encoding='utf-8').split('---\n', 2)
    header = yaml.safe_load(header)
    assert (header['sdk'], header['sdk_version'], header['app_file']) == ('gradio', gradio.__version__, 'app.py')
    assert header['license'] == OnnxSegmenter(space/'model.onnx').about.license == 'apache-2.0'
    assert len(header['short_description']) <= 60 and {header['colorFrom'], header['colorTo']} <= {'yellow', 'purple'}
    assert 'hf upload' in text and (space/'requirements.txt').read_text().startswith('sadlr[demo,onnx] @ git+https://')

@needs_gradio
def test_a_file_becomes_a_space_as_it_is(space, tmp_path):
    sadlr_demo(str(space/'model.onnx'), space/'examples', tmp_path/'again')
    assert {p.relative_to(space): p.read_bytes() for p in space.rglob('*') if p.is_file()} == {
        p.relative_to(tmp_path/'again'): p.read_bytes() for p in (tmp_path/'again').rglob('*') if p.is_file()}

def test_a_license_cannot_break_the_header():
    for license in 'mit', 'a: b\n---\n"', 'ünter': # as `write_space` puts it
        header = CARD.format(gradio='6', license=__import__('json').dumps(license), repository='').split('---\n', 1)[1]
        assert next(yaml.safe_load_all(header))['license'] == license

def test_without_gradio(tmp_path):
    code = "import sys; sys.modules['gradio'], sys.argv = None, ['/usr/bin/sadlr_demo']; from sadlr.app import sadlr_demo as d; d()"
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=tmp_path, capture_output=True, text=True,
                          env=dict(os.environ, PYTHONPATH=str(repo)))
    assert (done.returncode, done.stderr) == (1, 'sadlr_demo: gradio is not installed: pip install "sadlr[demo]"\n')
