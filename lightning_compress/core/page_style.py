"""The head that all pages share: one style, no network, readable on a phone."""

#: For Jinja: `title` is the page's; what follows goes into `<head>` too, and closes it.
HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { --ink: #1f2933; --soft: #616e7c; --line: #e4e7eb; --paper: #f5f7fa; --accent: #2563eb; --warn: #b44d12; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, sans-serif; }
main { max-width: 1360px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.7rem; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 10px; }
p { margin: 4px 0; }
.soft, caption { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 20px 0; }
.card, section { background: white; border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.card b { display: block; font-size: 1.5rem; line-height: 1.25; }
.card span { color: var(--soft); font-size: .85rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)); gap: 16px; }
.pair { margin: 16px 0; } .pair section { min-width: 0; margin: 0; overflow: hidden; }
section { margin: 16px 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
tr.dense td { background: #fdf3f3; }
tbody tr:hover td { background: #eef4ff; }
.tag { color: var(--warn); font-size: .8rem; white-space: normal; display: block; }
details { border-top: 1px solid var(--line); padding: 8px 0; }
summary { cursor: pointer; font-weight: 600; }
summary span { font-weight: 400; color: var(--soft); margin-left: 8px; overflow-wrap: anywhere; }
code { background: var(--paper); border-radius: 4px; padding: 1px 5px; margin-right: 4px; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: minmax(110px, max-content) 1fr; gap: 6px 18px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 600px) { main { padding: 16px 10px 40px; } dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 8px; } }
</style>
"""
