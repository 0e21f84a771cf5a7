"pages.py FOLDER: writes the pages that Sphinx reads, one per notebook in nbs/ and one per module of sadlr/"
import ast, json, re, shutil, sys, tokenize
from collections import defaultdict
from configparser import ConfigParser
from pathlib import Path
import nbformat
from nbformat.v4 import new_markdown_cell

repo = Path(__file__).resolve().parents[2]
config = ConfigParser(delimiters=['='])
config.read(repo/'settings.ini', encoding='utf-8')
settings = config['DEFAULT']

SITE = f'{settings["doc_host"]}{settings["doc_baseurl"]}/'

GROUPS = { # of the side bar, in its order: first number, and caption
    0: 'Course', 60: 'Tutorials', 70: 'Results', 3: 'Basics', 10: 'Data', 20: 'Models', 31: 'Losses and scores',
    34: 'Use a model', 38: 'Training and evaluation', 48: 'Explain, demo, commands'}

LIVE = 'live/index.html' # made by .ci/live, in a minute; .ci/docs does without

DOORS = { # at the top of the first page: what a reader wants, and where it is
    'Try': {'In your browser': LIVE, 'Ask the shipped model': 'index.html#ask-it', 'A panel to play with': 'demo.html',
            'Run the notebooks': 'course.html#run-the-notebooks'},
    'Learn': {'The course': 'course.html', 'The paper, in code': 'models.sadlr.html',
              'Questions': 'course.html#questions', 'Glossary': 'course.html#glossary'},
    'Train': {'On rendered shapes': 'tutorial.train_on_shapes.html', 'On RefCOCO': 'tutorial.train_on_refcoco.html',
              'On your own photos': 'tutorial.your_own_photos.html',
              'Your own encoder': 'tutorial.your_own_encoder.html'},
    'Look up': {'Commands': 'cli.html', 'Modules': 'api/index.html', 'All names': 'genindex.html',
                'Source on GitHub': settings['git_url']}}

SOUGHT = { # words that readers search for and a title does not say
    'models.lavt_ris': 'pretrained checkpoint', 'models.timm_encoder': 'custom backbone',
    'models.sadlr': 'method refinement dynamic convolution query', 'metrics': 'oiou miou iou precision',
    'checkpoint': 'resume continue training', 'distributed': 'multi gpu ddp parallel',
    'tutorial.train_on_refcoco': 'reproduce paper', 'tutorial.your_own_photos': 'my custom dataset images fine-tune',
    'tutorial.your_own_encoder': 'my custom backbone'}

def number(stem): return int(re.match(r'(\d*)', stem)[1] or -1)

def prefix(stem):
    "The number of a notebook, as its title begins"
    found = re.match(r'\d+[a-z]?', stem)
    return f'{found[0]} · ' if found else ''

def page_name(stem):
    "The page of a notebook is named as nbdev's own links expect: without its number"
    return re.sub(r'^\d+[a-z]?_', '', stem)

def toctree(pages, *options):
    return '\n'.join(['```{toctree}', *options, '', *pages, '```'])

def plain(text):
    "Markdown without its marks"
    text = re.sub(r'!?\[([^\]]*)\]\([^)]*\)|^> ?', r'\1', text, flags=re.M)
    return ' '.join(re.sub(r'[`*$]|<[a-z/][^>]*>', '', text).split())

def meta(page, title, about):
    "What search engines read, and what is shown where the page is linked"
    about = plain(about)
    tags = {'description': about, 'keywords': SOUGHT.get(page, '').replace(' ', ', '),
            'property=og:title': plain(title), 'property=og:description': about, 'property=og:type': 'website',
            'property=og:url': f'{SITE}{page}.html', 'property=og:image': f'{SITE}_static/preview.png'}
    return {'html_meta': {name: said for name, said in tags.items() if said}}

def front(**fields): return f'---\n{json.dumps(fields)}\n---\n' # JSON is YAML

# ---- notebooks

def without_directives(source): return re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip('\n')

def definitions(source):
    "Names of the functions and classes that a cell defines"
    return [node.name for node in ast.parse(source).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]

def alternative(source, prose):
    "What stands for a figure that is not seen: `#| fig-alt:`, or section and last sentence before it"
    said = re.search(r'^#\|\s*fig-alt:\s*(.+)', source, re.M)
    if said: return said[1].strip()
    heading = re.findall(r'^#+ (.*)', prose, re.M)[-1:]
    text = re.sub(r'^(#|\||```).*', '', prose, flags=re.M).strip()
    sentence = re.split(r'(?<=[.:!?])\s+', text)[-1]
    return plain(': '.join(filter(None, [*heading, sentence]))).rstrip(':')

def code_cell(cell, prose=''):
    "A code cell as the site shows it: no directives, solutions folded, no live widgets, figures with a text"
    if cell.metadata.get('jupyter', {}).get('source_hidden'): cell.metadata.tags = ['hide-cell']
    for output in cell.outputs: output.get('data', {}).pop('application/vnd.jupyter.widget-view+json', None)
    cell.outputs = [o for o in cell.outputs if o.get('data', True)]
    if any(key.startswith('image/') for o in cell.outputs for key in o.get('data', {})):
        cell.metadata.mystnb = {'image': {'alt': alternative(cell.source, prose)}}
    cell.source = without_directives(cell.source)
    return cell

def markdown_cell(cell):
    "A markdown cell whose links lead to the pages of the notebooks"
    cell.source = re.sub(r'(\]\()\d+[a-z]?_(?=[\w.]+\.ipynb)', r'\1', cell.source)
    return cell

def links(stem, module):
    "The line under a title: the module's page, and the notebook where it can be read, and run"
    file = f'blob/{settings["branch"]}/nbs/{stem}.ipynb'
    colab = settings['git_url'].replace('https://github.com', 'https://colab.research.google.com/github')
    about = [f'module `{module}`'] if module else []
    return ' · '.join([*about, f'[this notebook on GitHub]({settings["git_url"]}/{file})',
                       f'[open in Colab]({colab}/{file}) (<a href="course.html#run-the-notebooks">first cell</a>)'])

def doors():
    "The ways in, as a list of lists"
    groups = [f'<li><strong>{wish}</strong><ul>'
              + ''.join(f'<li><a href="{target}">{name}</a></li>' for name, target in there.items()) + '</ul></li>'
              for wish, there in DOORS.items()]
    return f'<ul class="doors">{"".join(groups)}</ul>'

def course():
    "Notebooks of the course in its reading order, from its own table"
    cells = nbformat.read(repo/'nbs'/'00_course.ipynb', as_version=4).cells
    return ['00_course', *re.findall(r'^\|[^|\[]*\| \[(\S+?)\]\(', '\n'.join(c.source for c in cells), re.M)]

def notebook_page(notebook, stem):
    "The notebook without what nbdev leaves out, with an anchor before each exported definition"
    cells, module, prose = [], None, ''
    for cell in notebook.cells:
        if re.search(r'^#\|\s*hide\s*$', cell.source, re.M): continue
        if cell.cell_type == 'markdown':
            prose = '\n'.join([*re.findall(r'^#+ .*', prose, re.M)[-1:], cell.source]) # under the last title
            cells.append(markdown_cell(cell))
            continue
        named = re.search(r'^#\|\s*default_exp\s+(\S+)', cell.source, re.M)
        if named: module = f'{settings["lib_name"]}.{named[1]}'
        exported = re.search(r'^#\|\s*export', cell.source, re.M)
        cell = code_cell(cell, prose)
        anchors = [f'<div id="{module}.{name}"></div>' for name in definitions(cell.source)] if exported else []
        if anchors: cells.append(new_markdown_cell(''.join(anchors)))
        if cell.source: cells.append(cell)
    title, _, subtitle = cells[0].source.removeprefix('# ').partition('\n')
    cells[0].source = f'# {prefix(stem)}{title}\n{subtitle}'
    cells.insert(1, new_markdown_cell(doors() if stem == 'index' else links(stem, module)))
    notebook.cells = cells
    notebook.metadata.myst = meta(page_name(stem), title, subtitle)
    notebook.metadata.language_info = {'name': 'python', 'pygments_lexer': 'ipython3'} # nbdev_clean drops it
    return notebook

# ---- modules

def parameters(function):
    "Parameters of a function, as (name, annotation, default, last line)"
    a = function.args
    plain = a.posonlyargs + a.args
    defaults = [None]*(len(plain) - len(a.defaults)) + a.defaults + [None] + a.kw_defaults + [None]
    bare = ast.arg('*', end_lineno=0) if a.kwonlyargs else None # the star that only separates
    stars = {a.vararg: '*', a.kwarg: '**'}
    for arg, default in zip([*plain, a.vararg or bare, *a.kwonlyargs, a.kwarg], defaults):
        if arg: yield stars.get(arg, '') + arg.arg, arg.annotation, default, (default or arg).end_lineno

def fields(cls):
    "Annotated fields of a class, in the form of `parameters`"
    return [(n.target.id, n.annotation, n.value, n.end_lineno) for n in cls.body if isinstance(n, ast.AnnAssign)]

def written(node): return ast.unparse(node) if node else ''

def signature(rows):
    "`(name: type = default, ...)` of the rows of `parameters`"
    sides = [name + (f': {written(type)}' if type else '') + (f' = {written(default)}' if default else '')
             for name, type, default, _ in rows]
    return f'({", ".join(sides)})'

def table(rows, returns, comments):
    "The docments as a table; nothing where no parameter has one"
    owner = {line: name for name, *_, line in rows} # of several parameters in a line, the last has its comment
    if returns: owner[returns.end_lineno] = 'returns'
    said = {name: comments[line] for line, name in owner.items() if line in comments}
    if not said: return ''
    rows = [(f'`{name}`', type, default, said.get(name, '')) for name, type, default, _ in rows if name != '*']
    if returns: rows.append(('returns', returns, None, said.get('returns', '')))
    code = lambda node: f'`{written(node)}`' if node else ''
    lines = [[name, code(type), code(default), about] for name, type, default, about in rows]
    lines = [['name', 'type', 'default', 'meaning'], ['---']*4] + lines
    if not any(line[2] for line in lines[2:]): lines = [[*line[:2], line[3]] for line in lines]
    return '\n'.join('| ' + ' | '.join(cell.replace('|', r'\|') for cell in line) + ' |' for line in lines)

def directive(kind, argument, body, depth, **options):
    fence = ':'*depth
    options = ''.join(f':{key.replace("_", "-")}: {value}\n' for key, value in options.items())
    return f'{fence}{{py:{kind}}} {argument}\n{options}\n{body}\n{fence}\n'

def decorators(node): return [written(d) for d in getattr(node, 'decorator_list', [])]

def function_entry(node, comments, method=False, link='', **options):
    "A function or method: signature, docstring, docments"
    rows, kinds = list(parameters(node)), decorators(node)
    if method and 'staticmethod' not in kinds: rows = rows[1:]
    for kind in ('staticmethod', 'classmethod'):
        if kind in kinds: options[kind] = ''
    about = f'{ast.get_docstring(node) or ""} {link}'.strip()
    body = '\n\n'.join(filter(None, [about, table(rows, node.returns, comments)]))
    if method and {'property', 'cached_property'} & set(kinds):
        return directive('property', node.name, body, 4, **({'type': written(node.returns)} if node.returns else {}))
    result = f' -> {written(node.returns)}' if node.returns else ''
    return directive('method' if method else 'function', node.name + signature(rows) + result, body, 4, **options)

def class_entry(node, comments, link=''):
    "A class: how it is made, docstring, docments, public methods"
    methods = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
    init = methods.get('__init__')
    rows = list(parameters(init))[1:] if init else fields(node)
    bases = ', '.join(f'`{written(base)}`' for base in node.bases)
    body = [f'{ast.get_docstring(node) or ""} {link}'.strip(), bases and f'Subclass of {bases}.',
            init and ast.get_docstring(init), table(rows, None, comments)]
    body += [function_entry(m, comments, method=True) for name, m in methods.items() if not name.startswith('_')]
    return directive('class', node.name + (signature(rows) if init or rows else ''), '\n\n'.join(filter(None, body)), 5)

def constant_entry(node, name, comments):
    value = written(node.value)
    if len(value) > 100: value = f'{value[:100]} …'
    return directive('data', name, comments.get(node.end_lineno, ''), 4, value=value)

def api_page(name, source, notebook):
    "The page of a module: an entry for each name of its `__all__`"
    tree = ast.parse(source)
    tokens = tokenize.generate_tokens(iter(source.splitlines(True)).__next__)
    comments = {t.start[0]: t.string[1:].strip() for t in tokens if t.type == tokenize.COMMENT}
    defined = defaultdict(list)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): defined[node.name].append(node)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in getattr(node, 'targets', None) or [node.target]:
                for n in ast.walk(target):
                    if isinstance(n, ast.Name): defined[n.id].append(node)
    elsewhere = [] # methods that this module adds to the class of another
    for patched in [n for n, nodes in defined.items() if any(d.startswith('patch') for d in decorators(nodes[0]))]:
        for method in defined.pop(patched):
            owner = written(method.args.args[0].annotation)
            if owner in defined: defined[owner][0].body.append(method)
            elif not method.name.startswith('_'):
                method.name = f'{owner}.{method.name}'
                elsewhere.append(function_entry(method, comments, method=True))
    public = ast.literal_eval(defined.pop('__all__')[0].value)
    page = page_name(notebook)
    entries = []
    for public_name, nodes in ((n, defined[n]) for n in defined if n in public):
        for i, node in enumerate(nodes):
            again = {'no_index': ''} if i else {} # a function of several dispatched forms has one anchor
            link = f'<a class="source" href="../{page}.html#{name}.{public_name}">[source]</a>'
            if isinstance(node, ast.FunctionDef): entries.append(function_entry(node, comments, link=link, **again))
            elif isinstance(node, ast.ClassDef): entries.append(class_entry(node, comments, link))
            else: entries.append(constant_entry(node, public_name, comments))
    about = ast.get_docstring(tree) or ''
    return '\n\n'.join([front(myst=meta(f'api/{name}', name, about)) + f'# {name}', about,
                        f'Defined and explained in [{notebook}](../{page}.ipynb).',
                        directive('module', name, '', 4), *entries, *elsewhere])

# ---- the site

def modules():
    "Every module that a notebook exports: (name, source, stem of the notebook)"
    for path in sorted((repo/settings['lib_path']).rglob('*.py')):
        source = path.read_text(encoding='utf-8')
        notebook = re.search(r'^# AUTOGENERATED.*/([\w.]+)\.ipynb', source, re.M)
        if notebook: yield '.'.join(path.relative_to(repo).with_suffix('').parts), source, notebook[1]

def write_pages(folder):
    groups = defaultdict(list)
    for path in sorted((repo/'nbs').glob('*.ipynb'), key=lambda path: (number(path.stem), path.stem)):
        page = notebook_page(nbformat.read(path, as_version=4), path.stem)
        if path.stem == 'index': index = page
        else:
            groups[max(n for n in GROUPS if n <= number(path.stem))].append(page_name(path.stem))
            nbformat.write(page, folder/f'{page_name(path.stem)}.ipynb')
    groups[0] = [page_name(stem) for stem in course()]
    trees = [toctree(groups[n], ':hidden:', f':caption: {caption}') for n, caption in GROUPS.items()]
    trees += [toctree(['api/index', 'All names <genindex>'], ':hidden:', ':caption: Reference')]
    index.cells.append(new_markdown_cell('\n\n'.join(trees)))
    nbformat.write(index, folder/'index.ipynb')
    shutil.copytree(repo/'nbs'/'images', folder/'images')

    (folder/'api').mkdir()
    rows = []
    for name, source, notebook in sorted(modules(), key=lambda m: (number(m[2]), m[2])):
        rows.append((name, ast.get_docstring(ast.parse(source)) or ''))
        (folder/'api'/f'{name}.md').write_text(api_page(name, source, notebook), encoding='utf-8')
    api = [front(myst=meta('api/index', 'Modules', 'All modules and names of the package')) + '# Modules',
           'In the order of their notebooks: each uses only modules above it. '
           '<a href="../genindex.html">All names</a> in one list.',
           '\n'.join(['| module | holds |', '| --- | --- |', *(f'| `{name}` | {about} |' for name, about in rows)]),
           toctree([name for name, _ in rows], ':hidden:')]
    (folder/'api'/'index.md').write_text('\n\n'.join(api), encoding='utf-8')

    lost = ['# This page does not exist', 'Its name may have changed. Search for it, or start here:', doors()]
    (folder/'404.md').write_text(front(orphan=True, nosearch=True) + '\n\n'.join(lost), encoding='utf-8')

if __name__ == '__main__': write_pages(Path(sys.argv[1]))
