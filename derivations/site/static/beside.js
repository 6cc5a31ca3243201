// On a wide screen the code stands open beside the paragraph that points at it; on a narrow one, or
// where it is a page's only piece, it is folded after it. And what scrolls sideways fades where
// there is more. See beside.css.
(() => {
  const wide = window.matchMedia("(min-width: 72em)");
  const article = document.querySelector(".article-container");
  const blocks = [...document.querySelectorAll("aside.beside")];
  const beside = () => wide.matches && blocks.length > 1;
  const GAP = 12, LEAST = 240; // pixels: between two blocks, and what a paragraph's blocks keep

  /** The block that an aside belongs to: what stands before it and is no aside. */
  function paragraph(block) {
    let before = block.previousElementSibling;
    while (before?.matches("aside.beside")) before = before.previousElementSibling;
    return before ?? block.parentElement;
  }

  function place() {
    const top = article?.getBoundingClientRect().top;
    const owners = blocks.map(paragraph), crowd = new Map();
    for (const owner of owners) crowd.set(owner, (crowd.get(owner) ?? 0) + 1);
    const wanted = owners.map((owner) => owner.getBoundingClientRect().top - top);
    let free = 0; // where the column is free again
    blocks.forEach((block, index) => {
      const code = block.querySelector(".highlight");
      block.classList.toggle("right", beside());
      code.style.maxHeight = block.style.top = "";
      if (!beside()) return;
      const start = Math.max(wanted[index], free);
      const room = (wanted[index + 1] ?? Infinity) - start - GAP;
      const height = block.offsetHeight;
      const around = height - code.offsetHeight; // the line above the code
      const least = Math.max(around + 70, LEAST / Math.max(1, crowd.get(owners[index]) - 1));
      const kept = Math.min(height, Math.max(room, least));
      code.style.maxHeight = `${kept - around}px`;
      block.style.top = `${start}px`;
      free = start + kept + GAP;
    });
  }

  function fade() {
    for (const box of document.querySelectorAll(".formula, .table-wrapper, article p:has(> img), article p:has(> a > img)")) {
      const more = () => box.classList.toggle("fades", box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
      if (!box.dataset.watched) box.addEventListener("scroll", more, { passive: true });
      box.dataset.watched = "yes";
      more();
    }
  }

  function open() {
    for (const block of blocks) block.firstElementChild.open = beside();
  }

  function show() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let box = target; box; box = box.parentElement) if (box.matches("details")) box.open = true;
    target?.querySelector("details")?.setAttribute("open", "");
    target?.scrollIntoView();
  }

  function arrange() {
    place();
    fade();
  }

  wide.addEventListener("change", () => { open(); arrange(); });
  window.addEventListener("hashchange", show);
  open();
  arrange();
  if (article) new ResizeObserver(arrange).observe(article);
  document.fonts?.ready.then(() => { arrange(); if (location.hash) show(); });
})();
