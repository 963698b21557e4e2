// object: traffic control: queueing disciplines that the program sets
// status: refused: traffic control of its own
// note: shape traffic on the hosts
#include "ip.h"

int main(void) {
    CHECK(!system("PATH=/usr/sbin:/sbin:/usr/bin:/bin tc qdisc add dev lo root handle 1: pfifo limit 100"));
    ready();
    while (go_on()) {}
    PASS();
}
