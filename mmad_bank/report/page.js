// Choosing, ordering and paging of the lists of images. Without this script all images are shown.
document.documentElement.classList.add("scripted");
for (const gallery of document.querySelectorAll(".gallery")) {
  const list = gallery.querySelector(".cards");
  const size = Number(gallery.dataset.pageSize);
  const [show, order, name] = ["show", "order", "name"].map((one) => gallery.querySelector("." + one));
  const at = gallery.querySelector(".at");
  const buttons = [...gallery.querySelectorAll(".pager button")];
  const cards = [...list.children].map((card, place) => ({
    card, place, name: card.querySelector(".id").textContent.replace(/^\d+\.\s*/, ""),
  }));
  let page = 0;

  function wanted({ card, name: own }) {
    const [what, value] = show.value === "all" ? ["", ""] : show.value.split(/:(.*)/s);
    const kept = what === "" || card.dataset[what] === value;
    return kept && own.toLowerCase().includes(name.value.trim().toLowerCase());
  }

  function draw() {
    const sorted = cards.filter(wanted);
    if (order.value === "up") sorted.reverse();
    if (order.value === "name") sorted.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
    const pages = Math.max(1, Math.ceil(sorted.length / size));
    page = Math.min(Math.max(page, 0), pages - 1);
    const shown = sorted.slice(page * size, (page + 1) * size);
    list.replaceChildren(...shown.map(({ card }) => card));
    const first = sorted.length ? page * size + 1 : 0;
    at.textContent = `${first} to ${page * size + shown.length} of ${sorted.length}`;
    buttons[0].disabled = page === 0;
    buttons[1].disabled = page === pages - 1;
  }

  for (const control of [show, order, name]) {
    control.addEventListener("input", () => { page = 0; draw(); });
  }
  for (const button of buttons) {
    button.addEventListener("click", () => {
      page += Number(button.dataset.step);
      draw();
      gallery.scrollIntoView({ block: "start" });
    });
  }
  draw();
}
