"""What a model is, as JSON: new fields change nothing for the models that do not use them."""

import json
from dataclasses import replace

from models.spec import ModelSpec, Preprocessing

FIRST = {"size": 64, "decoded_size": 224, "decode": "dct", "normalise": "film"}
"""A preprocessing as the first bundles and data sets hold it."""


def test_the_preprocessing_of_the_first_bundles_reads_and_writes_as_it_was() -> None:
    preprocessing = Preprocessing(**FIRST)  # type: ignore[arg-type]
    assert (preprocessing.fit, preprocessing.harmonise, preprocessing.as_seen) == ("squash", None, "")
    assert json.dumps(preprocessing.to_json()) == json.dumps(FIRST)


def test_a_fit_travels_with_the_model() -> None:
    preprocessing = Preprocessing(fit="letterbox", harmonise=1.34)
    spec = ModelSpec(name="cnn", parameters={"width": 8}, preprocessing=preprocessing)
    again = ModelSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert again.preprocessing.as_seen == "harmonised at 1.34:1, letterboxed"
    assert replace(preprocessing, harmonise=None).to_json().get("harmonise", "absent") == "absent"
