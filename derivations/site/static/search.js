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

  const numbers = query.match(/^\s*(?:eqs?\.?|equations?)?\s*\(?(\d+)\)?\s*$/i);
  if (numbers && equations[numbers[1]]) {
    const { page, what } = equations[numbers[1]];
    const first = Object.assign(document.createElement("p"), { className: "equation" });
    const link = Object.assign(document.createElement("a"), { href: page, textContent: `Eq. ${numbers[1]}: ${what}` });
    first.append(link);
    results.before(first);
  }
  new MutationObserver((changes) => {
    for (const item of changes.flatMap((change) => [...change.addedNodes])) {
      const link = item.matches?.("li") && item.querySelector("a");
      const text = link && texts[link.getAttribute("href").split(/[?#]/)[0]];
      if (text) add(item, link, excerpt(text));
    }
  }).observe(results, { childList: true, subtree: true });
})();
