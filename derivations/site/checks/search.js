// The search: a promise of a list of problems (check_browser.py). The page is opened with "Eq. 20".
(async () => {
  const WANTED = {
    "FlowDensity": "site/api.html#snfnp.FlowDensity",
    "check_layer": "site/api-checks.html#snfnp.check_layer",
    "GridSearchCV": ["site/api.html", "site/guide-6-notebook-table.html", "25-an-average-of-densities.html"],
    "missing values": ["site/guide-6-notebook-table.html", "site/guide-2-runs.html"],
    "log determinant of a convolution": ["10-block-tridiagonal.html"],
    "weight sharing": ["07-convolutions.html"],
    "variational bound": ["20-variational.html"],
    "resume a run": ["site/guide-2-runs.html", "site/api.html"],
    "rational-quadratic spline": ["09-splines.html"],
    "install on a GPU": ["site/guide-3-gpu.html"],
    "which lambda is stable": ["22-stability.html"],
  };
  const problems = [];
  const first = document.querySelector("#found a")?.getAttribute("href") ?? "";
  if (!first.startsWith("04-dense.html#")) problems.push(`the first result of Eq. 20 is ${first}`);
  for (const [query, wanted] of Object.entries(WANTED)) {
    const results = window.searched(query).slice(0, 2);
    if (![wanted].flat().some((page) => results.some((href) => href.startsWith(page)))) problems.push(`${query}: ${results}`);
  }
  const excerpts = [...document.querySelectorAll("#found .excerpt")].slice(0, 2);
  if (!excerpts.some((excerpt) => excerpt.textContent)) problems.push("results without excerpts");
  return problems;
})()
