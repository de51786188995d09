"""Known vulnerabilities of what is installed, by pip-audit: `make audit`.

Fails where a newer version mends one. An index that says nothing about vulnerabilities leaves packages unaudited, which
is said and is no failure: pip-audit alone would call that "none found".
"""

import json
import subprocess
import sys


def main() -> int:
    command = [sys.executable, "-m", "pip_audit", "--skip-editable", "--progress-spinner", "off", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        said = done.stderr.strip().splitlines()
        print(f"Nothing was audited: {said[-1] if said else 'pip-audit gave no answer'}")
        return 0
    known = [package for package in packages if not package.get("skip_reason")]
    print(f"Audited: {len(known)} of {len(packages)} packages; the index says nothing about the others.")
    mendable = 0
    for package in known:
        for found in package["vulns"]:
            mended = ", ".join(found["fix_versions"])
            print(f"{package['name']} {package['version']}: {found['id']}, mended in: {mended or 'no version yet'}")
            mendable += bool(mended)
    return int(mendable > 0)


if __name__ == "__main__":
    sys.exit(main())
