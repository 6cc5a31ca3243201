// What the search for Eq. 20 found: a promise of a list of problems (check_browser.py).
(async () => {
  for (let wait = 0; wait < 100 && !document.querySelector("#search-results li .excerpt"); wait++)
    await new Promise((done) => setTimeout(done, 50));
  const problems = [];
  const first = document.querySelector("p.equation a, #search-results li a")?.getAttribute("href") ?? "";
  if (!first.startsWith("04-dense.html#")) problems.push(`the first result is ${first}`);
  const excerpts = document.querySelectorAll("#search-results li .excerpt").length;
  if (!excerpts) problems.push("results without excerpts");
  return problems;
})()
