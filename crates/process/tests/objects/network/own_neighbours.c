// object: permanent neighbours, and addresses that the program answers for (proxy)
// status: captured
// note: neighbours that the kernel has found are found again. An entry for which it answers is noticed at the next change of another kind
#include "ip.h"

static const char *list(void) {
    return ip_output("neigh show nud permanent | sort; " IP "-6 neigh show nud permanent | sort; " IP "neigh show proxy");
}

int main(void) {
    const char *device = ip_device();
    ip("addr add 198.51.100.9/24 dev %s", device);
    ip("neigh add proxy 198.51.100.200 dev %s", device);
    ip("neigh add 198.51.100.7 lladdr 02:00:00:00:00:07 dev %s nud permanent", device);
    ip("neigh add 198.51.100.8 lladdr 02:00:00:00:00:08 dev %s nud permanent router", device);
    ip("neigh del 198.51.100.8 dev %s", device);
    const char *before = list();
    CHECK(strstr(before, "198.51.100.7") && strstr(before, "198.51.100.200"));
    ready();
    while (go_on()) {}
    ip_same("neighbours", before, list());
    ip("neigh del 198.51.100.7 dev %s", device);
    PASS();
}
