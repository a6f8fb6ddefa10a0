// The page of `mm-spine serve`: a picture in the clipboard becomes an upload, and on a phone the answer comes into view.
document.addEventListener("paste", (event) => {
  const files = event.clipboardData ? event.clipboardData.files : [];
  const input = document.querySelector('#images input[type="file"]');
  if (!files.length || !input) return;
  event.preventDefault();
  const given = new DataTransfer();
  for (const file of files) given.items.add(file);
  input.files = given.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
});
document.addEventListener("click", (event) => {
  const asked = event.target instanceof Element && event.target.closest("#ask");
  const answer = document.querySelector("#answer");
  if (asked && answer && window.innerWidth < 700) answer.scrollIntoView({ block: "start", behavior: "smooth" });
});
