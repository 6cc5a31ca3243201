// On a wide screen the code stands beside the paragraph that points at it; on a narrow one, or
// where it is a page's only piece, it is folded after it. And what scrolls sideways fades where
// there is more. See beside.css.
(() => {
  const wide = window.matchMedia("(min-width: 72em)");
  const article = document.querySelector(".article-container");
  const blocks = [...document.querySelectorAll("aside.beside")];
  const beside = () => wide.matches && blocks.length > 1;
  const GAP = 12, LEAST = 140, FARTHEST = 640; // pixels: between two blocks, what an open one keeps, several of a paragraph

  /** The block that an aside belongs to: what stands before it and is no aside. */
  function paragraph(block) {
    let before = block.previousElementSibling;
    while (before?.matches("aside.beside")) before = before.previousElementSibling;
    return before ?? block.parentElement;
  }

  /** Blocks share the room down to the next paragraph that has any. Those for which it is too little
      are folded, so that all stay level with their paragraphs. */
  function place() {
    const top = article?.getBoundingClientRect().top;
    const groups = new Map();
    for (const block of blocks) groups.set(paragraph(block), [...(groups.get(paragraph(block)) ?? []), block]);
    const owners = [...groups.keys()];
    const starts = owners.map((owner) => owner.getBoundingClientRect().top - top);
    const ends = owners.map((owner) => owner.closest("section").getBoundingClientRect().bottom - top);
    let free = 0; // where the column is free again
    [...groups.values()].forEach((group, index) => {
      let at = Math.max(starts[index], free);
      let room = (starts[index + 1] ?? Infinity) - at;
      if (group.length > 1) room = Math.min(room, Math.max(ends[index] - at, 0), FARTHEST);
      group.forEach((block, number) => {
        const details = block.firstElementChild, code = block.querySelector(".highlight");
        block.classList.toggle("right", beside());
        code.style.maxHeight = block.style.top = "";
        if (!beside()) return;
        details.open = true;
        const height = block.offsetHeight, around = height - code.offsetHeight; // the lines above the code
        const share = room / (group.length - number) - GAP;
        details.open = share >= Math.min(height, LEAST);
        const kept = details.open ? Math.min(height, share) : block.offsetHeight;
        code.style.maxHeight = `${kept - around}px`;
        block.style.top = `${at}px`;
        at += kept + GAP;
        room -= kept + GAP;
      });
      free = beside() ? at : 0;
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

  /** A block that a reader opens has the height that it needs, above the others. */
  for (const block of blocks)
    block.querySelector("summary").addEventListener("click", () => { block.querySelector(".highlight").style.maxHeight = ""; });

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
