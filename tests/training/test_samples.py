"""Tables of sample answers, against the converter that TensorBoard uses."""

import html
import re

from hypothesis import example, given
from hypothesis import strategies as st
from tensorboard.plugin_util import markdown_to_safe_html

from birthplace_lm.training.callbacks.samples import _cell


@given(st.text(alphabet="aé1 |*_`<>&#\\[]()!~-.\n", max_size=20))
@example("<b>")
@example("*a* `b` | [c](d)")
def test_a_cell_shows_the_characters_themselves(text: str) -> None:
    shown = markdown_to_safe_html(f"| question |\n| --- |\n| x{_cell(text)}x |")
    cells = re.findall(r"<td>(.*?)</td>", shown, re.DOTALL)
    assert [" ".join(html.unescape(cell).split()) for cell in cells] == [" ".join(f"x{text}x".split())]
