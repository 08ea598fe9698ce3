"""Which stages run after a change. The table is the specification."""

import re

import pytest
from conftest import Pipeline

SEGMENTERS = {"train_segmenter@r0", "relabel@0", "train_segmenter@r1", "predict@r0", "predict@r1"}
SEGMENTER = SEGMENTERS | {
    *("evaluate_clustering", "evaluate_linear", "evaluate_quality", "report"),
}
AGGREGATE = {"aggregate"} | SEGMENTER
DETECTOR = {"train_detector", "detect", "evaluate_instances"} | AGGREGATE
CRF = {"relabel@0", "train_segmenter@r1", "predict@r1", "evaluate_clustering", "evaluate_linear", "evaluate_quality", "report"}

CHANGES = {
    ("report.pictures", 1): {"report"},
    ("choose.repeats", 3): {"choose_k", "report"},
    ("linear.lr", 0.2): {"evaluate_linear", "report"},
    ("crf.iterations", 3): CRF,
    ("relabel.flip", True): CRF,
    ("segmenter.lr", 0.1): SEGMENTER,
    ("aggregate.threshold", 0.01): AGGREGATE,
    ("detect.min_score", 0.001): {"detect", "evaluate_instances"} | AGGREGATE,
    ("detector.lr", 0.002): DETECTOR,
    ("cluster.k", 4): {"cluster"} | DETECTOR,
    ("cluster.overclusters", 100): {"choose_k", "cluster"} | DETECTOR,
    ("embed.descriptor", "mean"): {"embed", "choose_k", "cluster"} | DETECTOR,
    ("embed.resize", 24): {"embed", "choose_k", "cluster"} | DETECTOR,
    ("mine.keep", 0.5): {"mine", "embed", "choose_k", "cluster"} | DETECTOR,
    ("foreground.lr", 0.1): {"foreground@foreground", "mine", "embed", "choose_k", "cluster"} | DETECTOR,
    ("croc.lr", 0.1): {"croc", "foreground@foreground", "mine", "embed", "choose_k", "cluster"} | DETECTOR,
}


def test_a_param_reruns_only_what_depends_on_it(pipe):
    """DVC is asked, not let loose: an output that comes out the same at toy size would end the chain early."""
    as_shipped = (pipe.root / "params.yaml").read_text()
    for (key, value), stages in CHANGES.items():
        pipe.set(key, value)
        assert set(pipe.repro("--dry", "--force-downstream")) == stages, key
        (pipe.root / "params.yaml").write_text(as_shipped)


def test_what_dvc_says_is_what_it_does(pipe):
    pipe.set("crf.iterations", 3)
    assert set(pipe.repro("--force-downstream")) == CRF


def test_self_training_of_the_detector_runs_where_it_is_asked_for(pipe):
    pipe.set("retrain", [{"instances": "instances", "detections": "detections", "to": "d1"}])
    assert set(pipe.repro()) == {"self_train@0", "retrain_detector@0", "detect_again@0"}
    pipe.set("detections", "detections-d1")
    assert set(pipe.repro("--dry", "--force-downstream")) == {"evaluate_instances"} | AGGREGATE


def test_a_vit_student_takes_the_place_of_deeplab(pipe):
    pipe.set("segmenter.arch", "vit")
    assert set(pipe.repro("--force-downstream")) == SEGMENTER


def test_an_item_of_refine_may_have_values_of_relabel(pipe):
    pipe.set("refine", [{"from": "r0", "to": "r1", "crf": False, "scales": [1.0, 1.25], "threshold": 0.7}])
    assert set(pipe.repro("--force-downstream")) == CRF


def test_weights_that_fetch_does_not_list_end_it_before_any_work(pipe):
    name = "timm/vit_small_patch14_reg4_dinov2.lvd142m"
    pipe.set("backbone.weights", f"models/{name}.safetensors")
    done = pipe.sh("dvc", "repro")
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    assert f"backbone.weights is models/{name}.safetensors: no such file; add {name} to fetch, and `dvc repro` makes it" in said
    assert re.findall(r"Running stage '([^']+)'", said) == ["prepare"]


def test_nothing_runs_twice(pipe):
    assert pipe.repro() == []


def test_going_back_is_free(pipe):
    before = pipe.sh("cat", "dvc.lock").stdout
    pipe.set("mine.keep", 0.3)
    assert pipe.repro()
    pipe.set("mine.keep", 0.2)
    assert pipe.repro() == []
    assert pipe.sh("cat", "dvc.lock").stdout == before


@pytest.mark.parametrize(
    ("module", "stages"),
    [
        ("stages/report.py", {"report"}),
        ("unseg/segmentation/crf.py", SEGMENTERS | {"aggregate", "evaluate_linear"}),
        ("unseg/clustering/algorithms.py", {"cluster", "choose_k", "evaluate_quality", "report"}),
    ],
)
def test_editing_a_module_reruns_the_stages_of_its_folder_only(pipe, module, stages):
    with (pipe.root / module).open("a") as file:
        file.write("\n# a comment\n")
    assert set(pipe.repro()) == stages


def test_naming_clusters_reruns_the_report_only(pipe):
    pipe = Pipeline(pipe.root)  # with the real commands
    (pipe.root / "clusters.yaml").write_text("clusters: {0: {name: zebra}, 1: {merge: 0}, 2: {ignore: true}}\n")
    assert set(pipe.repro()) == {"report"}
    report = (pipe.root / "results/report.html").read_text()
    assert "Cluster 0, zebra" in report
    assert "merged into zebra" in report


def test_regrouping_reruns_nothing_upstream(pipe):
    pipe.set("regroup", [{"from": "r0", "to": "g0"}])
    pipe.set("rounds", ["g0", "r1"])
    pipe.set("refine", [{"from": "g0", "to": "r1"}])
    (pipe.root / "clusters.yaml").write_text("clusters: {1: {merge: 0}}\n")
    assert pipe.repro("train_segmenter@g0") == ["regroup@0", "train_segmenter@g0"]
