// On paper: the stage at four moments. The text, the algorithm and the table of steps stand in the document itself.
function snapshots() {
  const here = at, moments = [...new Set([find(6, 0), turn < count ? findAny(9, J) : -1, findAny(14, J - 1), count - 1])].filter((i) => i >= 0);
  const figures = moments.map((i) => {
    show(i, false);
    const copies = ["map", "step"].map((id) => h("div", { class: "draw" }, ...[...$(id).querySelector(".draw").childNodes].map((node) => node.cloneNode(true))));
    for (const copy of copies) for (const node of copy.querySelectorAll("[id], [tabindex], [role]")) { node.removeAttribute("tabindex"); }
    return h("figure", null, h("figcaption", null, place(i)), ...copies);
  });
  show(here, false);
  $("snapshots").replaceChildren(...figures);
}
addEventListener("beforeprint", snapshots);
addEventListener("afterprint", () => $("snapshots").replaceChildren());
