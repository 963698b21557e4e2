// When told, it closes a connection, is given its number again for another one, and closes that with data on its way.
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static struct sockaddr_in address = {.sin_family = AF_INET};

static int dial(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof address)) perror("BAD connect");
    return fd;
}

int main(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, 0);
    socklen_t size = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 8)) perror("BAD listen");
    getsockname(listener, (struct sockaddr *)&address, &size);
    dial();
    int first = accept(listener, 0, 0);
    printf("ready\n");
    fflush(stdout);
    int number;
    sigwait(&set, &number);
    // Nobody reads from it. Dialled before the number is free, so that the number goes to the other end.
    dial();
    close(first);
    int second = accept4(listener, 0, 0, SOCK_NONBLOCK);
    if (second != first) printf("BAD %d is not %d\n", second, first);
    static char block[1 << 16];
    while (write(second, block, sizeof block) > 0) {}
    close(second);
    printf("done\n");
    fflush(stdout);
    for (;;) pause();
}
