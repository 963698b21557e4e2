// object: pseudo-terminals
// status: refused: terminal
// note: start it with its standard streams redirected
#include "object.h"
#include <fcntl.h>

int main(void) {
    int fd = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    CHECK(fd >= 0);
    ready();
    while (go_on()) {}
    PASS();
}
