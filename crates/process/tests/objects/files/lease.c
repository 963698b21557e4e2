// object: file leases (F_SETLEASE)
// status: refused: lease
// note: use locks
#include "object.h"
#include <fcntl.h>

int main(void) {
    int fd = open("/tmp/leased", O_RDWR | O_CREAT, 0600);
    CHECK(!fcntl(fd, F_SETLEASE, F_WRLCK));
    ready();
    while (go_on()) {}
    PASS();
}
