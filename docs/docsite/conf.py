# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation site: guides and measurements in Markdown, the reference by antsibull-docs (tools/docs)."""

import re

from docutils import nodes
from pygments.lexers.special import TextLexer
from sphinx.highlighting import lexers

project = "gpufleet.llm"
copyright = "gpufleet.llm maintainers"  # noqa: A001 (Sphinx asks for this name)
html_title = "gpufleet.llm"
html_short_title = "gpufleet.llm"
html_baseurl = "https://gpufleet.github.io/gpufleet.llm/"

extensions = ["myst_parser", "sphinx_antsibull_ext"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
myst_links_external_new_tab = False
highlight_language = "text"
lexers["mermaid"] = TextLexer()  # GitHub draws these diagrams; here they stay text

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "source_repository": "https://github.com/gpufleet/gpufleet.llm/",
    "source_branch": "main",
    "source_directory": "docs/",
}

# Labels of Ansible's own documentation that antsibull-docs refers to. Sphinx would fetch their list from docs.ansible.com.
ANSIBLE_DOCS = "https://docs.ansible.com/ansible/latest/"
ANSIBLE_LABELS = {
    "action_plugins": "plugins/action.html",
    "ansible_configuration_settings": "reference_appendices/config.html",
    "common_return_values": "reference_appendices/common_return_values.html",
}


def page_of(label):
    """The page of docs.ansible.com for a label of Ansible's own documentation, such as a module's of ansible.builtin; None for any other."""
    plugin = re.fullmatch(r"ansible_collections\.(ansible)\.(builtin)\.(\w+)", label or "")
    return "collections/{}/{}/{}.html".format(*plugin.groups()) if plugin else ANSIBLE_LABELS.get(label)


def link_ansible_label(app, env, node, contnode):  # pylint: disable=unused-argument
    """The link for such a label; None for any other, which Sphinx then reports."""
    page = page_of(node.get("reftarget"))
    if page is None:
        return None
    return nodes.reference("", "", contnode, internal=False, refuri=ANSIBLE_DOCS + page)


def setup(app):
    """Sphinx calls this once."""
    app.connect("missing-reference", link_ansible_label)
