(() => {
  "use strict";
  const status = document.getElementById("status");

  // Sortable tables: a click sorts the rows, a second one reverses them, a third restores the original order.
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim().replace(/\u2212/g, "-").replace(/,/g, "");
    const number = parseFloat(text.replace(/^< /, ""));
    const name = row.cells[column].matches("th");
    return name ? text : Number.isNaN(number) ? null : number;
  };
  const order = (a, b) =>
    typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const free = rows.filter((row) => !row.classList.contains("worst"));
    const fixed = rows.filter((row) => row.classList.contains("worst"));
    const heads = [...table.querySelectorAll("th[data-column]")];
    const sort = (head) => {
      const column = Number(head.dataset.column);
      const names = typeof value(free[0], column) === "string";
      const turns = names ? ["ascending", "descending"] : ["descending", "ascending"];
      const turn = turns[turns.indexOf(head.getAttribute("aria-sort")) + 1];
      for (const other of heads) other.removeAttribute("aria-sort");
      const known = free.filter((row) => value(row, column) !== null);
      const sign = turn === "descending" ? -1 : 1;
      if (turn) {
        head.setAttribute("aria-sort", turn);
        known.sort((a, b) => sign * order(value(a, column), value(b, column)));
      }
      const unknown = free.filter((row) => !known.includes(row));
      body.append(...(turn ? [...known, ...unknown] : free), ...fixed);
      status.textContent = `${head.textContent.trim()}: ${turn ? `sorted, ${turn}` : "in the original order"}`;
    };
    for (const head of free.length > 1 ? heads : []) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(head));
      head.append(button);
    }
  }

  // Galleries with pages; the arrow keys also turn them.
  const PAGE = 6;
  for (const gallery of document.querySelectorAll(".gallery")) {
    const cards = [...gallery.querySelectorAll(".card")];
    const pages = Math.ceil(cards.length / PAGE);
    if (pages < 2) continue;
    let page = 0;
    const bar = document.createElement("div");
    const place = document.createElement("span");
    const button = (label, text, step) => {
      const made = document.createElement("button");
      made.type = "button";
      made.textContent = text;
      made.setAttribute("aria-label", label);
      made.addEventListener("click", () => show(page + step));
      return made;
    };
    const back = button("previous pictures", "\u2190", -1);
    const on = button("next pictures", "\u2192", 1);
    const show = (to) => {
      page = Math.min(Math.max(to, 0), pages - 1);
      const last = Math.min((page + 1) * PAGE, cards.length);
      cards.forEach((card, i) => { card.hidden = i < page * PAGE || i >= last; });
      place.textContent = `${page * PAGE + 1}\u2013${last} of ${cards.length}`;
      back.setAttribute("aria-disabled", String(page === 0));
      on.setAttribute("aria-disabled", String(page === pages - 1));
    };
    const keys = { ArrowLeft: () => page - 1, ArrowRight: () => page + 1, Home: () => 0, End: () => pages - 1 };
    gallery.tabIndex = 0;
    gallery.addEventListener("keydown", (event) => {
      if (!(event.key in keys) || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      show(keys[event.key]());
    });
    bar.className = "pages";
    place.setAttribute("role", "status");
    bar.append(back, place, on);
    gallery.prepend(bar);
    show(0);
  }
})();
