// The search page: one list, of where an equation is derived, names of the package, and pages by how
// well they fit. All is in index.js, which is written with the site: nothing is fetched, and file:// will do.
(() => {
  const { equations, pages, names } = window.INDEX;
  const COMMON = new Set("a an and are as at be by for from how in is it of on or that the this to what with".split(" "));
  const stem = (word) => (word.length > 4 ? word.replace(/(ing|ed|es|e|(?<!s)s)$/, "") : word);
  const wordsOf = (text) => (text.toLowerCase().match(/[\p{L}\p{N}_]+/gu) ?? []).map(stem);

  function counted(text) {
    const counts = new Map();
    for (const word of wordsOf(text)) counts.set(word, (counts.get(word) ?? 0) + 1);
    return counts;
  }

  // Of each page its title, and the words of every section.
  const all = Object.entries(pages).map(([page, sections]) => ({
    page,
    title: sections[0]?.[1] ?? page,
    sections: sections.map(([id, heading, text]) => ({ id, heading, text, head: counted(heading), words: counted(text) })),
  }));
  const having = (page, word) => page.sections.some((section) => section.words.has(word) || section.head.has(word));

  // A word counts by how rare it is among pages, a heading's word three times, the query as typed most.
  function found(query) {
    const typed = query.trim().toLowerCase();
    const words = [...new Set(wordsOf(query))].filter((word) => !COMMON.has(word));
    const weights = words.map((word) => Math.log((all.length + 1) / (all.filter((page) => having(page, word)).length + 0.5)));
    const fits = ({ text, heading, head, words: own }) => {
      let score = 0;
      words.forEach((word, index) => {
        const count = own.get(word) ?? 0;
        score += weights[index] * (count / (count + 2) + 3 * (head.has(word) ? 1 : 0));
      });
      const weight = weights.reduce((sum, each) => sum + each, 0);
      if (text.toLowerCase().includes(typed)) score += weight;
      if (heading.toLowerCase().includes(typed)) score += 2 * weight;
      return score;
    };
    const results = all.map(({ page, title, sections }) => {
      const scores = sections.map(fits);
      const best = scores.indexOf(Math.max(...scores));
      const score = scores.reduce((sum, each) => sum + each, 0) / 4 + (scores[best] ?? 0);
      const { id, heading, text } = sections[best] ?? { id: "", heading: "", text: "" };
      return { score, href: `${page}#${id}`, title: best ? `${title}: ${heading}` : title, text: excerpt(text, typed, words) };
    });
    const pagesFound = results.filter(({ score }) => score > 0).sort((a, b) => b.score - a.score).slice(0, 20);
    return [...equation(query), ...named(typed), ...pagesFound];
  }

  function equation(query) {
    const number = query.match(/^\s*(?:eqs?\.?|equations?)?\s*\(?(\d+)\)?\s*$/i)?.[1];
    return equations[number] ? [{ href: equations[number].page, title: `Eq. ${number}: ${equations[number].what}`, text: "" }] : [];
  }

  // Names of the reference whose last part was typed; the shortest, which is the package's own, first.
  function named(typed) {
    return Object.entries(names)
      .filter(([name]) => name.toLowerCase() === typed || name.toLowerCase().endsWith(`.${typed}`))
      .sort((a, b) => a[0].length - b[0].length)
      .slice(0, 3)
      .map(([name, href]) => ({ href, title: name, text: "" }));
  }

  function excerpt(text, typed, words) {
    const low = text.toLowerCase();
    const at = [typed, ...words].map((word) => low.indexOf(word)).find((place) => place >= 0) ?? 0;
    const start = Math.max(0, at - 100);
    return text && `${start ? "…" : ""}${text.slice(start, start + 240).trim()}…`;
  }

  // Sphinx writes its own results into the element of this name, which is not shown.
  const theirs = document.getElementById("search-results");
  const list = Object.assign(document.createElement("ol"), { id: "found" });
  theirs.before(list);
  theirs.hidden = true;
  const query = new URLSearchParams(location.search).get("q") ?? "";
  const results = query.trim() ? found(query) : [];
  for (const { href, title, text } of results) {
    const item = document.createElement("li");
    item.append(Object.assign(document.createElement("a"), { href, textContent: title }));
    item.append(Object.assign(document.createElement("p"), { className: "excerpt", textContent: text }));
    list.append(item);
  }
  if (query.trim() && !results.length) list.before(`Nothing has the words “${query}”.`);
  window.searched = (other) => found(other).map(({ href }) => href);
})();
