"How Sphinx makes the site from the pages that pages.py has written"
import re, sys
from pathlib import Path
from docutils import nodes
from latex2mathml.converter import convert
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

sys.path.insert(0, str(Path(__file__).parent))
from pages import page_name, repo, settings

project = html_title = settings['title']
author = settings['author']
project_copyright = settings['copyright']
extensions = ['myst_nb']
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
html_baseurl = f'{settings["doc_host"]}{settings["doc_baseurl"]}/'
html_static_path = html_css_files = ['style.css']
html_math_renderer = 'mathml'
html_copy_source = html_show_sphinx = False

METHODS = 'method', 'property'

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

    def find(self, text):
        "(page, anchor) of what a text names, or None"
        if (repo/'nbs'/f'{text}.ipynb').is_file(): return page_name(text), ''
        name = re.fullmatch(r'([\w.]+)(\([^()]*\))?', text) # alone, or in a call
        found = self.targets().get(name[1], []) if name else []
        module = self.env.docname.removeprefix('api/').removeprefix('sadlr.') # of this page; its own names come first
        own = [full for full in found if full.startswith(f'sadlr.{module}.')]
        if len(own or found) != 1: return None
        entry = self.env.domains.python_domain.objects[(own or found)[0]]
        return entry.docname, entry.node_id

    def run(self):
        for literal in list(self.document.findall(nodes.literal)):
            parent = literal.parent
            while parent and not isinstance(parent, (nodes.reference, nodes.title)): parent = parent.parent
            found = None if parent else self.find(literal.astext())
            if found:
                link = make_refnode(self.app.builder, self.env.docname, *found, literal.deepcopy())
                literal.replace_self(link)

def mathml(writer, node):
    "A formula as MathML, which a browser draws by itself"
    block = isinstance(node, nodes.math_block)
    latex = re.sub(r'\$(.*?)\$', r'}\1\\text{', node.astext()) # the converter knows no $ within \text
    html = convert(latex, display='block' if block else 'inline')
    html = re.sub('<mo>(&#x0219[13];)', r'<mo stretchy="false">\1', html) # arrows up and down are as tall as letters
    writer.body.append(f'<div class="math">{html}</div>' if block else html)
    raise nodes.SkipNode

def setup(app):
    app.add_html_math_renderer('mathml', inline_renderers=(mathml, None), block_renderers=(mathml, None))
    app.add_post_transform(LinkNames)
