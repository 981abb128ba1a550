"""A page on what `launch/gpu_check.sh` found."""

from html import escape

from hpcm_scale.planning.measured import Measured
from hpcm_scale.units import GIB

STYLE = """body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}
table{border-collapse:collapse}
td,th{padding:.2em .8em;border-bottom:1px solid #ccc;text-align:right}
td:first-child,th:first-child,td.text{text-align:left}.bad{color:#b00}"""


def page(record: Measured) -> str:
    """HTML of a record: its checks, then its steps."""
    checks = "".join(
        f"<tr><td>{escape(check.name)}</td>"
        f"<td class='text{'' if check.passed else ' bad'}'>{'passed' if check.passed else 'failed'}"
        f"</td><td class=text>{escape(check.said)}</td></tr>"
        for check in record.checks
    )
    steps = "".join(
        f"<tr><td>{escape(step.model)}</td><td>{step.micro_batch}</td><td>{step.precision}</td>"
        f"<td>{'yes' if step.graphs else 'no'}</td><td>{1e3 * step.seconds:.1f}</td>"
        f"<td>{step.micro_batch / step.seconds:.1f}</td><td>{step.launches}</td>"
        f"<td>{step.peak_share:.1%}</td><td>{step.memory_predicted / GIB:.2f}</td>"
        f"<td>{step.memory_measured / GIB:.2f}</td></tr>"
        for step in record.steps
    )
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    link = "one device" if record.link is None else f"{record.link / 1e9:.1f} GB/s between devices"
    return f"""<!doctype html><meta charset=utf-8><title>{escape(record.device)}</title>
<style>{STYLE}</style>
<h1>{escape(record.device)}</h1>
<p>{record.devices} × {record.memory / GIB:.0f} GiB; {record.peak / 1e12:.3g} TFLOP/s of a large
product; {1e6 * record.launch_seconds:.1f} µs a launch; {link};
{record.crops_per_second:.0f} crops/s a data worker, {record.workers} processors;
{escape(versions)}. By launch/gpu_check.sh.</p>
<h2>Checks</h2><table>{checks}</table>
<h2>Steps</h2><table><tr><th>network<th>crops<th>precision<th>graphs<th>ms<th>crops/s<th>launches
<th>of peak<th>GiB predicted<th>GiB measured</tr>{steps}</table>
"""
