"""No ground truth reaches a model: read it off the DAG, not off a promise."""

from pathlib import Path

from dvc.repo import Repo


def test_no_model_has_ground_truth_upstream(warm):
    with Repo(str(warm.root)) as repo:
        stages = [s for s in repo.index.stages if getattr(s, "cmd", None)]

        def relative(path: str) -> str:
            return Path(path).relative_to(warm.root).as_posix()

        maker = {relative(out.fs_path): stage for stage in stages for out in stage.outs}
        # Everything that a later training could read: weights, and what is learned from.
        files = [f for f in maker if f.startswith("models/") or (f.startswith("data/") and f != "data/truth.zip")]
        assert len([f for f in files if f.startswith("models/")]) >= 4
        files = [f for f in files if f not in ("data/images.json", "data/rejected.json", "data/raw/demo")]
        seen: set[str] = set()
        while files:
            file = files.pop()
            if file in seen:
                continue
            seen.add(file)
            if file in maker and file != "data/images.json":  # prepare reads the truth to set it apart
                files += [relative(dep.fs_path) for dep in maker[file].deps if dep.hash_name != "params"]
    assert "data/truth.zip" not in seen
    assert not [f for f in seen if f.endswith(".zip") and f not in maker]  # nothing that people corrected, as shipped
    assert not [f for f in seen if "truth" in f or "annotations" in f]
