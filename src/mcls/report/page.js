"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "ascending";
      const number = (text) => (text === "" ? NaN : Number(text.replaceAll(",", "").replace(/ *[%±[].*$/, "")));
      const compare = (one, other) => {
        const [a, b] = [one, other].map((row) => row.cells[column].textContent.trim());
        const [x, y] = [a, b].map(number);
        if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;
        return (isNaN(x) ? a.localeCompare(b, undefined, { numeric: true }) : x - y) * (falling ? -1 : 1);
      };
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      body.append(...[...body.rows].sort(compare));
    });
    head.replaceChildren(button);
  });
}
