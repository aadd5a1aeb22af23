// On a narrow screen page.css shows a table of words row by row; each cell then says its column.
document.addEventListener("DOMContentLoaded", () => {
  for (const wrapper of document.querySelectorAll(".table-wrapper")) {
    if (wrapper.querySelector("td.text-right")) continue;
    wrapper.classList.add("words");
    const columns = [...wrapper.querySelectorAll("thead th")].map((cell) => cell.innerText.trim());
    for (const row of wrapper.querySelectorAll("tbody tr")) {
      [...row.cells].slice(1).forEach((cell, number) => {
        cell.classList.toggle("blank", !cell.textContent.trim());
        if (columns[number + 1]) cell.dataset.column = columns[number + 1];
      });
    }
  }
});
