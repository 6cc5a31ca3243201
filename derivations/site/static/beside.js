// On a wide screen the code of a section stands beside it, open, from the section's head on; on a
// narrow one it stays folded after the paragraph that points at it. See beside.css.
(() => {
  const wide = window.matchMedia("(min-width: 88em)");
  const blocks = [...document.querySelectorAll("aside.beside")].map((block) => {
    const place = document.createComment("code");
    block.before(place);
    const section = block.closest("section");
    return { block, place, heading: section.querySelector("h1, h2, h3, h4") };
  });

  function arrange() {
    const last = new Map(); // heading -> what the next block of its section follows
    for (const { block, place, heading } of blocks) {
      block.classList.toggle("right", wide.matches);
      block.firstElementChild.open = wide.matches;
      if (wide.matches) {
        (last.get(heading) ?? heading).after(block);
        last.set(heading, block);
      } else {
        place.after(block);
      }
    }
    const target = document.getElementById(location.hash.slice(1));
    target?.closest("details")?.setAttribute("open", "");
    target?.scrollIntoView();
  }

  wide.addEventListener("change", arrange);
  window.addEventListener("hashchange", () => {
    document.getElementById(location.hash.slice(1))?.closest("aside")?.firstElementChild?.setAttribute("open", "");
  });
  arrange();
})();
