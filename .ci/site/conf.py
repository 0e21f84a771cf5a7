"How Sphinx makes the site from the pages that pages.py has written"
import json, re, sys
from pathlib import Path
from docutils import nodes
from latex2mathml.converter import convert
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.logging import getLogger
from sphinx.util.nodes import make_refnode

sys.path.insert(0, str(Path(__file__).parent))
from pages import SITE, SOUGHT, page_name, repo, settings

project = html_title = settings['title']
author = settings['author']
project_copyright = settings['copyright']
extensions = ['myst_nb', 'sphinx_copybutton']
copybutton_selector = 'div[class^="highlight-"] pre' # code; an output's first class is another
myst_enable_extensions = ['colon_fence', 'dollarmath']
myst_heading_anchors = 4
nb_execution_mode = 'off'
nb_code_prompt_show = nb_code_prompt_hide = 'Solution' # the only folded cells
nb_ipywidgets_js = {} # nothing is fetched from elsewhere
add_module_names = False
python_maximum_signature_line_length = 60
smartquotes = False # what notebooks put in quotes is often a value
html_theme = 'furo'
pygments_dark_style = 'github-dark' # furo's own underlines every class
html_theme_options = {'top_of_page_buttons': []}
html_baseurl = SITE
templates_path = ['.']
html_sidebars = {'**': ['sidebar/brand.html', 'repository.html', 'sidebar/search.html', 'sidebar/scroll-start.html',
                        'sidebar/navigation.html', 'sidebar/scroll-end.html']}
html_context = {'repository': settings['git_url']}
html_favicon = 'favicon.svg'
html_static_path = ['style.css', 'reach.js', 'preview.png']
html_css_files = ['style.css']
html_js_files = ['reach.js']
html_search_scorer = 'scorer.js'
html_math_renderer = 'mathml'
html_copy_source = html_show_sphinx = html_domain_indices = False

METHODS = 'method', 'property'
logger = getLogger(__name__)

def ancestors(node):
    while node := node.parent: yield node

class LinkNames(SphinxPostTransform):
    "A name in backticks becomes a link: of the library to its API entry, of a notebook to its page"
    default_priority = 5 # before references are resolved

    def targets(self):
        "Name as written -> full names that it may stand for; a method needs its class"
        if not hasattr(self.env, 'sadlr_names'):
            self.env.sadlr_names = names = {}
            for full, entry in self.env.domains.python_domain.objects.items():
                parts = full.split('.')
                written = {full, '.'.join(parts[1:])} if len(parts) > 2 else {full}
                own = parts[-2:] if entry.objtype in METHODS else parts[-1:]
                if entry.objtype != 'module': written.add('.'.join(own))
                for name in written: names.setdefault(name, []).append(full)
        return self.env.sadlr_names

    def find(self, text, explained):
        "(page, anchor) of what a text names, or None; the first column of a docments table explains its names itself"
        if text[:1].isdigit() and (repo/'nbs'/f'{text}.ipynb').is_file(): return page_name(text), ''
        name = re.fullmatch(r'([\w.]+)(\([^()]*\))?', text) # alone, or in a call
        if explained and '.' not in text: return None
        found = self.targets().get(name[1], []) if name else []
        module = self.env.docname.removeprefix('api/').removeprefix('sadlr.') # of this page; its own names come first
        own = [full for full in found if full.startswith(f'sadlr.{module}.')]
        word = text.isalpha() and text.islower() # `score` may be an argument, a column or a word
        if len(own or found) != 1 or word and not own: return None
        entry = self.env.domains.python_domain.objects[(own or found)[0]]
        return entry.docname, entry.node_id

    def run(self):
        for literal in list(self.document.findall(nodes.literal)):
            within = list(ancestors(literal))
            column = next((node.parent.index(node) for node in within if isinstance(node, nodes.entry)), None)
            named = any(isinstance(node, (nodes.reference, nodes.title)) for node in within)
            explained = column == 0 and self.env.docname.startswith('api/')
            found = None if named else self.find(literal.astext(), explained)
            if found:
                link = make_refnode(self.app.builder, self.env.docname, *found, literal.deepcopy())
                literal.replace_self(link)

def mathml(writer, node):
    "A formula as MathML, which a browser draws by itself"
    block = isinstance(node, nodes.math_block)
    latex = re.sub(r'\$(.*?)\$', r'}\1\\text{', node.astext()) # the converter knows no $ within \text
    html = convert(latex, display='block' if block else 'inline')
    if '\\' in html: logger.warning('no MathML for %s', latex, location=node)
    html = re.sub('<mo>(&#x0219[13];)', r'<mo stretchy="false">\1', html) # arrows up and down are as tall as letters
    writer.body.append(f'<div class="math">{html}</div>' if block else html)
    raise nodes.SkipNode

def finish(app, page, template, context, doctree):
    "A solution keeps its own name for a screen reader; the search knows more words; the page 404 works at any depth"
    context['body'] = context.get('body', '').replace('<summary aria-label="Toggle hidden content">', '<summary>')
    if page == 'search': app.add_js_file(None, body=f'const SOUGHT = {json.dumps(SOUGHT)}')
    if page == '404': context['metatags'] += f'<base href="{settings["doc_baseurl"]}/">'

def setup(app):
    app.connect('html-page-context', finish)
    app.add_html_math_renderer('mathml', inline_renderers=(mathml, None), block_renderers=(mathml, None))
    app.add_post_transform(LinkNames)
