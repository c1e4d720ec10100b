"""Manifests are YAML that a person can read."""

import yaml

from magbatch.deploy.text import to_yaml


def test_a_text_of_several_lines_is_written_line_by_line() -> None:
    text = to_yaml({"data": {"run.sh": "#!/bin/sh\nexit 0\n"}})
    assert text == "data:\n  run.sh: |\n    #!/bin/sh\n    exit 0\n"


def test_a_repeated_value_is_written_again() -> None:
    labels = {"app": "magbatch"}
    text = to_yaml({"one": labels, "two": labels})
    assert "&" not in text
    assert yaml.safe_load(text) == {"one": labels, "two": labels}


def test_keys_keep_their_order_and_letters_stay_as_they_are() -> None:
    assert to_yaml({"z": "größe", "a": 1}) == "z: größe\na: 1\n"
