"""A text in pieces is cut before its first stop string, and nothing of one is ever shown."""

from hypothesis import given
from hypothesis import strategies as st

from mini_chat_gpt.serve.stop_strings import StopStrings


@given(st.lists(st.text("abc", max_size=4), max_size=8), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_any_division_into_pieces_gives_the_same_text(pieces, stops):
    whole = "".join(pieces)
    # The reply ends with the piece that completes a stop string; of several, the one that begins first counts.
    lengths = [len("".join(pieces[: n + 1])) for n in range(len(pieces))]
    ends = [n for n in lengths if any(stop in whole[:n] for stop in stops)]
    seen = whole[: ends[0]] if ends else whole
    expected = seen[: min((seen.find(stop) for stop in stops if stop in seen), default=len(seen))]

    cutter, out = StopStrings(stops), ""
    for piece in pieces:
        out += cutter.push(piece)
        assert expected.startswith(out)
    out += cutter.finish()
    assert out == expected
    assert cutter.found == bool(ends)
