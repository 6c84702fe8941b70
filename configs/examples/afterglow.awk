# An external program: photons of a fading source in eight bins of one hour, above a background of 2 an hour.
#   awk -f afterglow.awk -v rate=30 -v decay=2.5 -v seed=7      prints eight whole numbers
# Every fortieth exposure is lost to a passing satellite and counted double.
function poisson(mean,    limit, k, product) {
  if (mean > 500) return int(mean + sqrt(mean) * sqrt(-2 * log(1 - rand())) * cos(6.283185307 * rand()) + 0.5)
  limit = exp(-mean); k = 0; product = rand()
  while (product > limit) { k++; product *= rand() }
  return k
}
BEGIN {
  if (rate <= 0 || decay <= 0) { print "rate and decay must be positive" > "/dev/stderr"; exit 3 }
  srand(seed)
  for (hour = 0; hour < 8; hour++) {
    count = poisson(2 + rate * exp(-hour / decay))
    if (rand() < 0.025) count *= 2
    printf "%d%s", count, (hour < 7 ? " " : "\n")
  }
}
