"""The trained models under `saved_models`: what they are, and how `make zoo` builds them anew.

`python -m mtlzoo.zoo` draws the data, trains, exports, verifies, writes model cards, and compares the metrics with
those of the models that were there. `mtlzoo.models.load` loads what it wrote.
"""
