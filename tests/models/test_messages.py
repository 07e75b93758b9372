import pytest

from models.messages import did_you_mean, first_line


@pytest.mark.parametrize(
    ("name", "most", "hint"),
    [
        ("cn", 1, "did you mean 'cnn'?"),
        ("resnet51", 2, "did you mean 'resnet50' or 'resnet152'?"),
        ("swin", 1, ""),
    ],
)
def test_the_names_close_to_a_misspelt_one(name: str, most: int, hint: str) -> None:
    assert did_you_mean(name, iter(["cnn", "resnet50", "resnet152"]), most=most) == hint


@pytest.mark.parametrize(
    ("text", "line"), [("\n  no route to host \nTraceback", "no route to host"), ("", "OSError"), (" \n ", "OSError")]
)
def test_an_error_in_one_line(text: str, line: str) -> None:
    assert first_line(OSError(text)) == line
