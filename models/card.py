"""The model card: one page for the person who must decide whether to trust this model."""

from collections.abc import Mapping
from typing import Any, Final

from jinja2 import Environment, StrictUndefined

from models.calibration import Calibration
from models.spec import DISCLAIMER, ModelSpec

_TEMPLATE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Model card: {{ spec.name }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733 }
table { border-collapse: collapse; margin: .5rem 0 } th, td { text-align: left; padding: .25rem 1rem .25rem 0 }
tr { border-bottom: 1px solid #d9dfe5 } .note { background: #fff4d6; padding: .75rem 1rem }
</style></head><body>
<h1>Model card: {{ spec.name }}</h1>
<p class="note"><strong>{{ disclaimer }}</strong></p>

<h2>Intended use</h2>
<p>Puts frontal chest films in order of how likely they show pneumonia, so that a radiologist may read the likelier
ones first. Every film is still read by a person. Not for other views, other body parts, other modalities, nor for
films of a kind (age, scanner, hospital) that the training films below do not cover.</p>

<h2>Data</h2>
<table><tr><th>Split</th><th>Patients</th>{% for name in spec.classes %}<th>{{ name }}</th>{% endfor %}</tr>
{% for split, count in lineage.get("counts", {}).items() -%}
<tr><td>{{ split }}</td><td>{{ count.patients }}</td>
{%- for name in spec.classes %}<td>{{ count.classes[name] }}</td>{% endfor %}</tr>
{% endfor %}</table>
<p>No patient stands in two splits. Dataset fingerprint: {{ lineage.get("dataset_fingerprint", "not recorded") }}.
Films are decoded to {{ spec.preprocessing.film_size }} &times; {{ spec.preprocessing.film_size }} grey levels;
the network sees {{ spec.preprocessing.size }} &times; {{ spec.preprocessing.size }}.</p>

<h2>How it did</h2>
{% for split, entry in evaluation.items() -%}
<h3>{{ split }}: {{ entry.metrics.n }} films, {{ entry.metrics.positives }} with disease</h3>
<p>AUC {{ interval(entry.metrics.auc) }}. Brier score {{ "%.4f" | format(entry.metrics.brier) }}.
Expected calibration error {{ "%.4f" | format(entry.metrics.ece) }} (15 bins of equally many films).</p>
<table><tr><th>Operating point</th><th>Threshold</th><th>Sensitivity</th><th>Specificity</th><th>Missed</th>
<th>False alarms</th></tr>
{% for name, at in entry.operating_points.items() -%}
<tr><td>{{ name }}{% if name == calibration.default %} (default){% endif %}</td>
<td>{{ "%.4f" | format(at.threshold) }}</td>
<td>{{ interval(at.sensitivity) }}</td><td>{{ interval(at.specificity) }}</td>
<td>{{ at.fn }}</td><td>{{ at.fp }}</td></tr>
{% endfor %}</table>
{% if entry.subtypes %}<table><tr><th>Subtype</th><th>Films</th><th>Sensitivity at {{ calibration.default }}</th></tr>
{% for name, group in entry.subtypes.items() -%}
<tr><td>{{ name }}</td><td>{{ group.n }}</td><td>{{ interval(group.sensitivity) }}</td></tr>
{% endfor %}</table>{% endif %}
{% if entry.engines is defined %}
<h4>Engines</h4>
<p>What runs this model faster than torch in 32 bits, compared with it on validation films: how far probabilities move,
and how many films change sides at an operating point. An engine is used only where it is allowed.</p>
<table><tr><th>Engine</th><th>Films</th><th>Mean move</th><th>Largest move</th><th>Change sides</th>
<th>AUC change</th><th>Allowed</th></tr>
{% for name, at in entry.engines.items() -%}
<tr><td>{{ name }} ({{ at.version }})</td><td>{{ at.films }}</td>
{%- if at.mean_dp is none %}<td colspan="4">not measured</td>{% else -%}
<td>{{ "%.2g" | format(at.mean_dp) }}</td><td>{{ "%.2g" | format(at.max_dp) }}</td>
<td>{% for point, flips in at.flips.items() %}{{ point }} {{ flips.films }}{{ ", " if not loop.last }}{% endfor %}</td>
<td>{{ "%+.4f" | format(at.auc_change) }}</td>{% endif %}
<td>{{ "yes" if at.allowed else "no: " ~ at.reasons | join("; ") }}</td></tr>
{% endfor %}</table>{% endif %}
{% if entry.fingerprint is defined %}<p>{% if entry.fingerprint.ood_score -%}
Each score comes with its film's distance from the training films in the network's features: about 1 is ordinary, and
of these validation films half lie below {{ "%.2f" | format(entry.fingerprint.ood_score.percentiles[50]) }} and 99 in
100 below {{ "%.2f" | format(entry.fingerprint.ood_score.percentiles[99]) }}.
{%- else %}This network has no features by which to tell films unlike the training films.{% endif %}
Drift is judged against {{ entry.fingerprint.films }} validation films.</p>{% endif %}
{% endfor %}
<p>Brackets hold 95 % intervals (DeLong for AUC, Wilson for shares).</p>

<h2>Limits</h2>
<ul>
<li>The validation films also chose the epoch, the temperature ({{ "%.3f" | format(calibration.temperature) }}) and the
thresholds: figures on them are better than new films will give.</li>
<li>The intervals tell what other films of the same archive might give. Another hospital, scanner, age group or
share of disease can move every figure further than that.</li>
<li>Probabilities hold for the share of disease among the validation films; where it is rarer they are too high.</li>
<li>Films count one by one; patients with several films are not one independent case each.</li>
</ul>

<h2>Made with</h2>
<p>{{ lineage.get("created", "") }}
{%- for name, version in lineage.get("versions", {}).items() %} &middot; {{ name }} {{ version }}{% endfor %}</p>
</body></html>
"""


def render_card(
    spec: ModelSpec, calibration: Calibration, evaluation: Mapping[str, Any], lineage: Mapping[str, Any]
) -> str:
    """HTML of the card. `evaluation` maps a split to an entry of `models/evaluation.py`."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(_TEMPLATE).render(
        spec=spec,
        calibration=calibration,
        evaluation=evaluation,
        lineage=lineage,
        disclaimer=DISCLAIMER,
        interval=_interval,
    )


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['value']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"
