"""`pgc3d doctor`: checks of this machine."""

import json
from dataclasses import asdict

from pgc3d.cli.console import deliver, plain_line
from pgc3d.cli.options import JsonOption


def doctor(*, json_: JsonOption = False) -> int:
    """Check this machine and print how to mend it; exit code 1 where a run would fail."""
    from pgc3d.doctor import examine

    findings = []
    for finding in examine():
        findings.append(finding)
        if not json_:
            deliver(f"{finding.state:8}{finding.name}: {plain_line(finding.found)}\n")
            if finding.remedy:
                deliver(f"{'':8}  {plain_line(finding.remedy)}\n")
    if json_:
        deliver(f"{json.dumps([asdict(finding) for finding in findings], indent=1)}\n")
    return 1 if any(finding.state == "broken" for finding in findings) else 0
