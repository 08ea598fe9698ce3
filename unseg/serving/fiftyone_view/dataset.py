"""The dataset of `unseg view`: FiftyOne's samples, colours and saved views, made of `fields`."""

from collections.abc import Iterable
from typing import Any

import fiftyone as fo
from fiftyone import ViewField

from unseg.core.label_maps import IGNORE_LABEL
from unseg.serving.fiftyone_view.fields import Photo, Shape, View
from unseg.serving.labels.source import VOID, hex_colour

BATCH = 64  # samples written at once
VIEWS = ("uncertain", "odd one out of its cluster", "changed since the last run")


def write(view: View, photographs: Iterable[Photo], name: str) -> Any:
    """A persistent dataset; one of the same name is replaced when all photographs have been read.

    Fields of a sample: `masks`, `detections` (fo.Detections with masks), `labels` (fo.Segmentation), `uncertainty`,
    `confidence`, `changed`, `split`.
    """
    part = f"{name}.part"
    if fo.dataset_exists(part):
        fo.delete_dataset(part)
    dataset = fo.Dataset(part)
    try:
        for field, kind in (("uncertainty", fo.FloatField), ("confidence", fo.FloatField), ("changed", fo.FloatField)):
            dataset.add_sample_field(field, kind)
        for field, label in (("masks", fo.Detections), ("detections", fo.Detections), ("labels", fo.Segmentation)):
            dataset.add_sample_field(field, fo.EmbeddedDocumentField, embedded_doc_type=label)
        batch = []
        for photo in photographs:
            batch.append(sample(photo))
            if len(batch) == BATCH:
                dataset.add_samples(batch, progress=False)
                batch = []
        dataset.add_samples(batch, progress=False)
        dress(dataset, view)
        if fo.dataset_exists(name):
            fo.delete_dataset(name)
        dataset.name = name
        dataset.persistent = True
    except BaseException:
        dataset.delete()
        raise
    return dataset


def sample(photo: Photo) -> Any:
    fields = {name: getattr(photo, name) for name in ("uncertainty", "confidence", "changed")}
    if photo.labels is not None:
        fields["labels"] = fo.Segmentation(mask=photo.labels)
    masks, detections = ([detection(s) for s in shapes] for shapes in (photo.masks, photo.detections))
    return fo.Sample(
        filepath=str(photo.path),
        tags=[photo.image.split],
        masks=fo.Detections(detections=masks),
        detections=fo.Detections(detections=detections),
        **fields,
    )


def detection(shape: Shape) -> Any:
    known = {"cluster": shape.cluster, "similarity": shape.similarity, "confidence": shape.score}
    rest = {key: x for key, x in known.items() if x is not None}
    return fo.Detection(label=shape.label, bounding_box=list(shape.box), mask=shape.mask, odd=shape.odd, **rest)


def dress(dataset: Any, view: View) -> None:
    """Names, colours, and the saved views; one without a photograph is left out."""
    names = {k: name for k, name in view.source.names.items() if k} | {IGNORE_LABEL: VOID}
    colours = {k: hex_colour(view.source.colours[k]) for k in names}
    dataset.default_mask_targets = names
    dataset.mask_targets = {"labels": names}
    values = [{"value": name, "color": colours[k]} for k, name in names.items()]
    scheme = [{"path": path, "colorByAttribute": "label", "valueColors": values} for path in ("masks", "detections")]
    targets = [{"intTarget": k, "color": colour} for k, colour in colours.items()]
    scheme.append({"path": "labels", "maskTargetsColors": targets})
    dataset.app_config.color_scheme = fo.ColorScheme(color_by="value", fields=scheme)
    dataset.info = {"changed": f"compared with {view.before}" if view.before else "nothing to compare with"}
    field = ViewField
    views = (
        dataset.match(field("uncertainty") > 0).sort_by("uncertainty", reverse=True),
        dataset.filter_labels("masks", field("odd") == True),  # noqa: E712  an expression, not a bool
        dataset.match(field("changed") > 0).sort_by("changed", reverse=True),
    )
    for name, found in zip(VIEWS, views, strict=True):
        if len(found):
            dataset.save_view(name, found)
    dataset.save()
