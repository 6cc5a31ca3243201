// The search page: where an equation is derived comes first, and every result has an excerpt. Both
// are from excerpts.js, which is written with the site: nothing is fetched, and file:// will do.
(() => {
  const query = new URLSearchParams(location.search).get("q") ?? "";
  const results = document.getElementById("search-results");
  const { equations, texts } = window.EXCERPTS;

  function excerpt(text) {
    const words = query.toLowerCase().split(/\s+/).filter((word) => word.length > 1);
    const low = text.toLowerCase();
    const found = [query.toLowerCase(), ...words].map((word) => low.indexOf(word)).find((at) => at >= 0) ?? 0;
    const start = Math.max(0, found - 100);
    return `${start ? "…" : ""}${text.slice(start, start + 240).trim()}…`;
  }

  function add(list, page, text) {
    list.append(Object.assign(document.createElement("p"), { className: "excerpt", textContent: text }));
  }

  // Sphinx's index knows whole words alone: pages that have the query as it was typed come first, those
  // that have it most often at the top.
  const typed = query.trim().toLowerCase();
  const having = Object.entries(texts)
    .map(([page, text]) => [text.toLowerCase().split(typed).length - 1, page, text])
    .filter(([count]) => typed.length > 1 && count)
    .sort((a, b) => b[0] - a[0])
    .slice(0, 5);
  for (const [, page, text] of having) {
    const found = Object.assign(document.createElement("p"), { className: "typed" });
    found.append(Object.assign(document.createElement("a"), { href: page, textContent: page.replace(".html", "") }));
    found.append(Object.assign(document.createElement("span"), { className: "excerpt", textContent: ` ${excerpt(text)}` }));
    results.before(found);
  }

  const numbers = query.match(/^\s*(?:eqs?\.?|equations?)?\s*\(?(\d+)\)?\s*$/i);
  if (numbers && equations[numbers[1]]) {
    const { page, what } = equations[numbers[1]];
    const first = Object.assign(document.createElement("p"), { className: "equation" });
    const link = Object.assign(document.createElement("a"), { href: page, textContent: `Eq. ${numbers[1]}: ${what}` });
    first.append(link);
    (document.querySelector("p.typed") ?? results).before(first);
  }
  new MutationObserver((changes) => {
    for (const item of changes.flatMap((change) => [...change.addedNodes])) {
      const link = item.matches?.("li") && item.querySelector("a");
      const text = link && texts[link.getAttribute("href").split(/[?#]/)[0]];
      if (text) add(item, link, excerpt(text));
    }
  }).observe(results, { childList: true, subtree: true });
})();
