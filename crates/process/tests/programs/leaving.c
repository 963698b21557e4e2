// Connections, each used for a while, written to until its peer takes no more, and closed.
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECTIONS 60

int main(void) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 8)) perror("BAD listen");
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("ready\n");
    fflush(stdout);
    for (int i = 0; i < CONNECTIONS; i++) {
        // Nobody reads from it.
        int other = socket(AF_INET, SOCK_STREAM, 0);
        int small = 4096;
        setsockopt(other, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
        if (connect(other, (struct sockaddr *)&address, size)) perror("BAD connect");
        int own = accept4(listener, 0, 0, SOCK_NONBLOCK);
        usleep(10000);
        static char block[1 << 12];
        while (write(own, block, sizeof block) > 0) {}
        close(own);
    }
    printf("done\n");
    fflush(stdout);
    for (;;) pause();
}
