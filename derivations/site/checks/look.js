// What a page looks like to a reader: a promise of a list of problems (check_browser.py).
(async () => {
  await document.fonts.ready;
  for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);
  const problems = [], root = document.documentElement;
  const wide = innerWidth >= 1152 && document.querySelectorAll("aside.beside").length > 1;
  const words = (box) => box.textContent.trim().replace(/\s+/g, " ").slice(0, 40);
  const cut = (box) => box.clientWidth && box.scrollWidth > box.clientWidth + 2;
  const hint = (box) => box.classList.contains("fades");
  if (root.scrollWidth > innerWidth + 1) problems.push(`wider than the screen: ${root.scrollWidth}`);
  for (const box of document.querySelectorAll(".formula, .table-wrapper, article p:has(> img)"))
    if (cut(box) && !hint(box)) problems.push(`cut without a hint: ${words(box) || "a picture"}`);
  for (const box of document.querySelectorAll("article :is(pre, .highlight, .line)"))
    if (cut(box) && box.checkVisibility()) problems.push(`code that is cut: ${words(box)}`);
  for (const math of document.querySelectorAll("article math")) {
    if (math.closest(".formula, .table-wrapper, summary")) continue;
    const block = math.closest("p, li, dd, h1, h2, h3, h4") ?? math.parentElement;
    const over = math.getBoundingClientRect().right - block.getBoundingClientRect().right;
    if (over > 3 && math.checkVisibility()) problems.push(`a formula that sticks out: ${words(math)}`);
  }
  for (const row of document.querySelectorAll("article tr"))
    if (row.offsetHeight > 300) problems.push(`a row of ${row.offsetHeight} pixels: ${words(row)}`);
  for (const picture of document.images)
    if (picture.complete && !picture.naturalWidth) problems.push(`no picture: ${picture.src}`);
  if (document.querySelector("math") && !document.fonts.check('16px "STIX Two Math"', "x"))
    problems.push("the mathematical font is not there");
  for (const place of document.querySelectorAll(".play"))
    if (!place.querySelector("path[d]")) problems.push(`nothing to play with: ${place.dataset.play}`);
  let end = -Infinity;
  for (const block of document.querySelectorAll("aside.beside")) {
    const box = block.getBoundingClientRect();
    let before = block.previousElementSibling;
    while (before?.matches("aside.beside")) before = before.previousElementSibling;
    const name = words(block.querySelector("summary"));
    if (block.classList.contains("right") !== wide) problems.push(`not where code belongs: ${name}`);
    if (!wide) continue;
    if (box.right > innerWidth + 1 || box.width < 300) problems.push(`no room for code: ${name}`);
    const drift = box.top - before.getBoundingClientRect().top;
    if (box.top < end - 1) problems.push(`code on code: ${name}`);
    if (drift < -2 || (drift > 4 && box.top > end + 16)) problems.push(`not level: ${name} (${drift})`);
    if (drift > 600) problems.push(`far from its paragraph: ${name} (${drift})`);
    end = box.bottom;
  }
  const shade = getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number);
  if ((shade[0] < 128) !== matchMedia("(prefers-color-scheme: dark)").matches)
    problems.push(`the background is ${shade}`);
  return problems;
})()
