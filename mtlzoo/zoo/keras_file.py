"""A trained model as a small Keras file that does not say when it was made."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import keras

from mtlzoo.models import MultiTaskModel

_METADATA = "metadata.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip archive can name


def write_keras_file(model: MultiTaskModel, path: Path) -> None:
    """Writes a compiled model without the moments of its optimizer, compressed, without the time of day.

    Adam's moments are twice the size of the weights, and fine-tuning on other data does well without them.

    Args:
        model: A compiled model; it is left as it is.
        path: The file to write, `.keras`.
    """
    compilation = model.get_compile_config()
    if compilation is None:
        raise ValueError(f"{model.name}: must be compiled, or nobody can train it further as it was trained")
    fresh = type(model).from_config(model.get_config())
    fresh.set_weights(model.get_weights())
    # Not `compile_from_config`, which makes the moments.
    fresh.compile(**keras.saving.deserialize_keras_object(compilation))
    written = path.with_name("written-" + path.name)
    fresh.save(written)
    with zipfile.ZipFile(written) as source, zipfile.ZipFile(path, "w") as target:
        for name in sorted(source.namelist()):
            content = source.read(name)
            if name == _METADATA:
                content = json.dumps({"keras_version": json.loads(content)["keras_version"]}).encode()
            target.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED, compresslevel=9)
    written.unlink()
