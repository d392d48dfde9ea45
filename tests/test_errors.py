"""How messages of other libraries are told in one line."""

from __future__ import annotations

import pytest

from gimli_core.errors import ArgumentError, first_line, shortened, unexpected

GLOO = (
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:29361. This may "
    "indicate that a remote process has terminated. Look at the logs of the other ranks."
)


def test_a_foreign_message_is_cut_after_a_word_and_says_so() -> None:
    said = first_line(RuntimeError(f"\n{GLOO}\nException raised from readComplete"))
    kept = said.removeprefix("RuntimeError: ").removesuffix(" …")
    assert said.endswith(" …")
    assert f"{GLOO} ".startswith(f"{kept} ")
    assert 140 < len(kept) <= 160


def test_an_error_of_this_package_keeps_its_remedy() -> None:
    error = unexpected("train_batches at j = 3", "a batch " + "as the first " * 20, "another", "Give the same.")
    assert first_line(error) == f"ArgumentError: {error}"
    assert first_line(ArgumentError()) == "ArgumentError"


@pytest.mark.parametrize("most", range(1, 40))
def test_words_stay_whole(most: int) -> None:
    text = "a /path/that/is/longer/than/that here"
    said = shortened(text, most)
    assert set(said.split()) <= {*text.split(), "…"}
    assert said.endswith("…") == (said != text)
    assert shortened("x" * 50, most) == "x" * 50
